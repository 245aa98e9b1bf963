"""A developer's stack: Redis from the host alone, code from the checkout, a restart at each change."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool

from aegis_worker.payload import Serializer
from tests.conftest import ROOT
from tests.stack.conftest import MakeStack, Stack, inspect

TASK = "app/components/worker/tasks/system.py"
PYTHON = str(ROOT / ".venv" / "bin" / "python")


@pytest.fixture(scope="module")
def dev(make_stack: MakeStack) -> Stack:
    stack = make_stack("dev")
    stack.make("up")
    return stack


def password(stack: Stack) -> str:
    return (stack.folder / "secrets" / "dev" / "redis_producer_password").read_text()


async def producer(stack: Stack) -> ArqRedis:
    """Another application, with arq and a copy of the serializer."""
    serializer = Serializer()
    return await create_pool(
        RedisSettings(port=stack.port, username="producer", password=password(stack)),
        default_queue_name="arq:queue:system",
        job_serializer=serializer.dumps,
        job_deserializer=serializer.loads,
    )


def test_redis_is_published_on_the_loopback_interface_alone(dev: Stack) -> None:
    ports = dev.inspect("redis")["NetworkSettings"]["Ports"]
    assert ports == {"6379/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(dev.port)}]}
    assert dev.inspect("worker")["NetworkSettings"]["Ports"] in ({}, None)


async def test_another_application_enqueues_from_the_host(dev: Stack) -> None:
    pool = await producer(dev)
    job = await pool.enqueue_job("system_health_check")
    assert job is not None
    assert "redis_version" in str(await job.result(timeout=10, poll_delay=0.1))
    await pool.aclose()


def test_the_cli_on_the_host_finds_redis_and_the_password(dev: Stack) -> None:
    done = dev.run(
        str(ROOT / ".venv" / "bin" / "python"), "-m", "aegis_worker", "health", "probe", ENV="dev", PYTHONPATH="."
    )
    assert done.returncode == 0


def test_stock_arq_checks_the_health_of_a_replica(dev: Stack) -> None:
    settings = "app.components.worker.queues.system.WorkerSettings"
    assert dev.host("worker").run(f"arq {settings} --check").succeeded


async def test_a_change_of_the_code_runs_within_seconds(dev: Stack) -> None:
    pool = await producer(dev)
    source = dev.folder / TASK
    original = source.read_text()
    container = dev.container("worker")
    started = inspect(container)["State"]["StartedAt"]

    source.write_text(original + "\n\nasync def system_health_check(ctx):\n    return 'changed'\n")
    assert await answers(pool, "changed")
    # A file that does not run is waited out, not died of.
    source.write_text("this is no Python\n")
    await asyncio.sleep(2)
    source.write_text(original)
    assert await answers(pool, "redis_version")
    assert inspect(container)["State"]["StartedAt"] == started
    await pool.aclose()


async def answers(pool: ArqRedis, text: str) -> bool:
    """Whether a health check soon answers with a text in it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        job = await pool.enqueue_job("system_health_check")
        assert job is not None
        if text in str(await job.result(timeout=15, poll_delay=0.1)):
            return True
    return False


def test_up_again_changes_nothing(dev: Stack) -> None:
    before = [(c, inspect(c)["State"]["StartedAt"]) for s in ("worker", "redis") for c in dev.containers(s)]
    dev.make("up")
    after = [(c, inspect(c)["State"]["StartedAt"]) for s in ("worker", "redis") for c in dev.containers(s)]
    assert before == after


def test_jobs_outlive_the_stack(dev: Stack) -> None:
    dev.compose("stop", "worker")
    done = dev.run(
        PYTHON, "-m", "aegis_worker", "job", "enqueue", "system_health_check", "--id", "kept",
        ENV="dev", PYTHONPATH=".",
    )  # fmt: skip
    assert done.returncode == 0
    dev.make("down")
    assert dev.containers("redis") == []
    dev.make("up")
    result = dev.app("job", "result", "kept", "--timeout", "20")
    assert result["success"]


def test_plain_compose_from_the_root_is_the_same_stack(dev: Stack) -> None:
    """`docker compose up --scale worker=2`, as the guide has it, with no option and no make."""
    names = dev.run("docker", "compose", "--project-name", dev.project, "ps", "--services").stdout.split()
    assert {"redis", "worker"} <= set(names)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:wrong@localhost:{port}", "refuses the login"),
        ("redis://localhost:1", "cannot be reached"),
    ],
)
def test_what_is_wrong_is_one_line(dev: Stack, url: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aegis_worker", "health", "probe"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "ENV": "none", "REDIS_URL": url.format(port=dev.port)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert quote(password(dev)) not in done.stderr
