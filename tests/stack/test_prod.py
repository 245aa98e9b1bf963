"""Production, as `make up ENV=prod` makes it: what runs, as whom, what it does under stress."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.secrets import passwords
from tests.conftest import copy_checkout
from tests.stack.conftest import MakeStack, Stack, eventually, inspect


@pytest.fixture(scope="module")
def prod(make_stack: MakeStack) -> Stack:
    stack = make_stack("prod")
    stack.make("up")
    return stack


def health(container: str) -> str:
    return str(inspect(container)["State"]["Health"]["Status"])


# -- what runs ----------------------------------------------------------------------------------------------------


def test_limits_and_reservations_come_from_the_env_files(prod: Stack) -> None:
    worker, redis = (prod.inspect(service)["HostConfig"] for service in ("worker", "redis"))
    assert (worker["NanoCpus"], worker["Memory"], worker["MemoryReservation"]) == (2 * 10**9, 2 << 30, 1 << 30)
    assert (redis["NanoCpus"], redis["Memory"]) == (10**9, 1 << 30)


def test_the_worker_has_time_to_drain(prod: Stack) -> None:
    assert prod.inspect("worker")["Config"]["StopTimeout"] == 45


def processes(stack: Stack, service: str) -> list[dict[str, str]]:
    """uid, name and command of each process, read as the kernel has them."""
    script = (
        'for p in /proc/[0-9]*; do [ "${p#/proc/}" = $$ ] || printf "%s|%s\\n" '
        '"$(sed -n "s/^Uid:[[:space:]]*//p" $p/status | cut -f1)" "$(tr "\\0" " " < $p/cmdline)"; done 2>/dev/null'
    )
    lines = stack.host(service).check_output(script).splitlines()
    rows = [dict(zip(("uid", "command"), line.split("|", 1), strict=True)) for line in lines]
    return [row for row in rows if row["command"] and "/proc/" not in row["command"]]


def test_one_process_a_queue_under_one_parent_all_unprivileged(prod: Stack) -> None:
    running = processes(prod, "worker")
    assert {row["uid"] for row in running} == {"10001"}
    queues = [row["command"].split()[-2] for row in running if "aegis_worker.process.serve" in row["command"]]
    assert sorted(queues) == ["load_test", "system"]
    assert {row["uid"] for row in processes(prod, "redis")} == {"999"}


def test_the_image_has_nothing_to_install_or_build_with(prod: Stack) -> None:
    worker = prod.host("worker")
    for tool in ("pip", "pip3", "gcc", "cc", "make", "apt-get"):
        assert not worker.exists(tool), tool
    assert worker.run("python -m pip --version").failed
    assert worker.run("python -m ensurepip --version").failed


def test_redis_runs_as_configured(prod: Stack) -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "900 1 300 10 60 10000",
        "maxmemory": str(512 << 20),
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "zK",
        "dir": "/data",
        "aclfile": "/run/secrets/redis_acl",
    }
    for name, value in expected.items():
        assert prod.redis("config", "get", name).splitlines()[-1] == value


def test_an_error_of_redis_is_one_of_make(prod: Stack) -> None:
    assert prod.make("redis-cli", "ARGS=nonsense", check=False).returncode
    assert prod.make("redis-cli", "ARGS=ping").stdout == "PONG\n"


def test_passwords_are_changed_while_jobs_run(prod: Stack) -> None:
    folder = prod.folder / "secrets" / "prod"
    before = {user: (folder / name).read_text() for user, name in passwords.USERS.items()}
    started = prod.inspect("worker")["State"]["StartedAt"]

    def works(user: str, password: str) -> bool:
        login = ["--user", user, "--pass", password, "--no-auth-warning", "ping"]
        return prod.host("redis").check_output("redis-cli $REDIS_CLI_TLS " + " ".join(login)) == "PONG"

    load = subprocess.Popen(
        ["python3", "-m", "ops", "--env", "prod", "app", "load-test", "io", "-n", "400", "--rate", "100", "--json"],
        cwd=prod.folder,
        stdout=subprocess.PIPE,
    )
    prod.make("secrets-rotate")
    for user, password in before.items():
        assert works(user, (folder / passwords.USERS[user]).read_text())
        assert works(user, password) == (user == "producer"), "another application needs time for its own"
    prod.make("secrets-rotate", "USER=producer", "ARGS=--finish")
    assert not works("producer", before["producer"])
    out, _ = load.communicate(timeout=60)
    assert json.loads(out)["done"] == 400
    assert prod.app("health", "probe")["healthy"], "new connections read the new password"
    assert prod.inspect("worker")["State"]["StartedAt"] == started


# -- what it does -------------------------------------------------------------------------------------------------


def test_a_thousand_jobs(prod: Stack) -> None:
    seen = prod.app("load-test", "io", "-n", "1000")
    assert (seen["jobs"], seen["done"], seen["failed"]) == (1000, 1000, 0)
    assert seen["jobs_per_s"] > 0


def test_logs_are_json_with_the_job_in_each_line(prod: Stack) -> None:
    job = prod.app("job", "enqueue", "system_health_check", "--wait")
    lines = [
        json.loads(line) for line in prod.compose("logs", "--no-log-prefix", "worker").splitlines() if line[:1] == "{"
    ]
    ours = [line for line in lines if line.get("job_id") == job["id"]]
    assert {line["message"].split()[0] for line in ours} == {"started,", "done"}
    for line in ours:
        assert (line["queue"], line["task"], line["try"], line["level"]) == ("system", "system_health_check", 1, "INFO")


def test_scaling_lasts(prod: Stack) -> None:
    prod.make("scale", "N=3")
    before = prod.containers("worker")
    assert len(before) == 3
    eventually(lambda: replicas(prod) == 3)
    prod.make("up")
    assert prod.containers("worker") == before
    spread = prod.app("load-test", "io", "-n", "1500")["replicas"]
    assert len(spread) == 3
    prod.make("scale", "N=0")
    assert "no worker is up in ENV=prod: `make scale N=1 ENV=prod`" in prod.make("health", check=False).stderr
    prod.make("scale", "N=1")
    assert len(prod.containers("worker")) == 1
    assert replicas(prod) == 1


def test_settings_that_cannot_work_replace_nothing(prod: Stack) -> None:
    before, text = prod.containers(), prod.local_file.read_text()
    prod.local_file.write_text(f"{text}WORKER_LEASE_SECONDS=1\n")
    done = prod.make("up", check=False)
    prod.local_file.write_text(text)
    assert done.returncode
    assert "WORKER_LEASE_SECONDS=1: Input should be greater than or equal to 3" in done.stderr
    assert "worker would not start: what runs goes on, and nothing was changed" in done.stderr
    assert prod.containers() == before


@pytest.mark.parametrize("target", ["up", "down", "destroy"])
def test_another_checkout_leaves_it_alone(prod: Stack, tmp_path: Path, target: str) -> None:
    copy_checkout(tmp_path)
    (tmp_path / "env" / "prod.local.env").write_text(prod.local_file.read_text())
    before = prod.containers()
    done = prod.run("make", target, "ENV=prod", f"--directory={tmp_path}", check=False)
    assert done.returncode
    assert f"ENV=prod runs from {prod.folder}, and this is {tmp_path}: " in done.stderr
    assert prod.containers() == before


def replicas(stack: Stack) -> int:
    """Replicas that say in Redis that they serve ``system``."""
    return int(stack.app("health", "probe", "--queue", "system", check=False)["live_replicas"]["system"])


def test_docker_stop_lets_running_jobs_finish(prod: Stack) -> None:
    ids = [f"drain-{n}" for n in range(10)]
    enqueue(prod, "light_io_task", ids, delay_s=3)
    eventually(lambda: prod.redis("exists", *(f"arq:in-progress:{i}" for i in ids)) == "10")
    worker = prod.container("worker")
    prod.run("docker", "stop", "--time", "45", worker)
    assert inspect(worker)["State"]["ExitCode"] == 0
    assert prod.redis("exists", *(f"arq:result:{i}" for i in ids)) == "10"
    assert prod.redis("exists", *(f"arq:in-progress:{i}" for i in ids)) == "0"
    prod.make("up")


def enqueue(stack: Stack, task: str, ids: list[str], **arguments: Any) -> None:
    """Enqueue as another application would: with arq and the serializer."""
    code = f"""
import asyncio
from arq import create_pool
from app.core.config import settings
async def main():
    pool = await create_pool(settings.redis_settings, job_serializer=settings.serializer.dumps)
    for i in {ids!r}:
        assert await pool.enqueue_job({task!r}, _job_id=i, _queue_name="arq:queue:load_test", **{arguments!r})
asyncio.run(main())
"""
    stack.run("docker", "exec", stack.container("worker"), "python", "-c", code)


def test_a_dead_child_restarts_the_container(prod: Stack) -> None:
    worker = prod.container("worker")
    restarts = inspect(worker)["RestartCount"]
    signal_children(prod, "KILL", "system")
    eventually(lambda: inspect(worker)["RestartCount"] == restarts + 1)
    eventually(lambda: health(worker) == "healthy")


def signal_children(stack: Stack, name: str, queue: str) -> None:
    """Send a signal to the processes of a queue in the worker; the image has no `pkill`."""
    script = f'for p in /proc/[0-9]*; do grep -qz "^{queue}$" $p/cmdline && kill -{name} "${{p#/proc/}}"; done; true'
    stack.run("docker", "exec", stack.container("worker"), "sh", "-c", script)


@pytest.fixture
def stuck_child(prod: Stack) -> Iterator[str]:
    signal_children(prod, "STOP", "system")
    yield prod.container("worker")
    signal_children(prod, "CONT", "system")


def test_a_stuck_loop_is_unhealthy(prod: Stack, stuck_child: str) -> None:
    eventually(lambda: health(stuck_child) == "unhealthy", within_s=40)
    assert "no beat: " in inspect(stuck_child)["State"]["Health"]["Log"][-1]["Output"]


def test_redis_gone_is_unhealthy_and_survived(prod: Stack) -> None:
    worker, redis = prod.container("worker"), prod.container("redis")
    eventually(lambda: health(worker) == "healthy")
    started = inspect(worker)["State"]["StartedAt"]
    prod.run("docker", "stop", redis)
    eventually(lambda: health(worker) == "unhealthy", within_s=40)
    prod.run("docker", "start", redis)
    eventually(lambda: health(worker) == "healthy")
    assert inspect(worker)["State"]["StartedAt"] == started
    assert prod.app("load-test", "io", "-n", "20")["done"] == 20
