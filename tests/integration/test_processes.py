"""Workers as they run in a container: real processes under their supervisor, asserted by a stock arq producer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis

from aegis_worker.payload import Serializer
from aegis_worker.process.serve import STUCK_EXIT_CODE
from aegis_worker.queue import keys, replicas
from aegis_worker.settings import STOP_MARGIN_S
from tests.conftest import ROOT, eventually, free_port, project_environment

SYSTEM, LOAD_TEST = "arq:queue:system", "arq:queue:load_test"
HEALTHCHECK = ROOT / "library" / "aegis_worker" / "process" / "healthcheck.sh"


class Service:
    """What a container of the service `worker` runs, and the folder of its beats."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, beats: Path) -> None:
        self.process = process
        self.log = log
        self.beats = beats

    def children(self) -> dict[str, int]:
        """Process ids of the workers by queue and number."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has ended meanwhile
            if parent == self.process.pid and "aegis_worker.process.serve" in command:
                found["-".join(command[-3:-1])] = int(folder.name)
        return found

    def healthy(self) -> bool:
        environment = {**os.environ, "WORKER_BEAT_DIR": str(self.beats)}
        return subprocess.run(["sh", HEALTHCHECK], env=environment, capture_output=True).returncode == 0

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Pause the workers, as a virtual machine may be: time goes on, and they do not know."""
        pids = self.children().values()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        for pid in [self.process.pid, *self.children().values()]:
            os.kill(pid, signal.SIGKILL)

    async def ends(self, within_s: float = 15) -> int:
        async with asyncio.timeout(within_s):
            return await self.process.wait()


MakeService = Callable[..., Any]


@pytest.fixture
def redis(redis: ArqRedis) -> ArqRedis:
    """A producer that writes as these workers read."""
    serializer = Serializer()
    redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
    return redis


@pytest.fixture
async def start(redis_server: RedisSettings, redis: ArqRedis, tmp_path: Path) -> AsyncIterator[MakeService]:
    services: list[Service] = []

    async def make(*options: str, **variables: str) -> Service:
        log, beats = tmp_path / f"log-{len(services)}", tmp_path / f"beats-{len(services)}"
        environment = project_environment(
            redis_server,
            WORKER_BEAT_DIR=str(beats),
            WORKER_DATA_DIR=str(tmp_path / "data"),
            WORKER_HEALTH_CHECK_INTERVAL="1",
            LOG_FORMAT="text",
        )
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aegis_worker", "worker", *options),
                cwd=ROOT,
                env=environment | variables,
                stdout=file,
                stderr=file,
            )
        services.append(Service(process, log, beats))
        return services[-1]

    yield make
    for service in services:
        if service.process.returncode is None:
            service.kill()
        await service.process.wait()
        print(service.log.read_text())


async def enqueue_slow(redis: ArqRedis, n: int, seconds: float) -> list[Any]:
    """Enqueue jobs that run for so long, and wait until all of them do."""
    jobs = [
        await redis.enqueue_job("light_io_task", delay_s=seconds, _job_id=f"slow-{i}", _queue_name=LOAD_TEST)
        for i in range(n)
    ]

    async def all_run() -> bool:
        return bool(await redis.exists(*(keys.IN_PROGRESS + f"slow-{i}" for i in range(n))) == n)

    await eventually(all_run)
    return jobs


async def test_each_queue_has_its_processes_and_one_signal_stops_all(start: MakeService, redis: ArqRedis) -> None:
    service = await start(WORKER_PROCESSES="2")
    await eventually(service.healthy)
    assert sorted(service.children()) == ["load_test-1", "load_test-2", "system-1", "system-2"]
    first, second = [replica["replica"] for replica in await replicas.read(redis, SYSTEM)]
    assert second == f"{first}-2"
    service.process.terminate()
    assert await service.ends() == 0
    assert await replicas.read(redis, SYSTEM) == []


async def test_sigterm_lets_running_jobs_finish(start: MakeService, redis: ArqRedis) -> None:
    service = await start("--queue", "load_test")
    jobs = await enqueue_slow(redis, 10, 1)
    service.process.terminate()
    assert await service.ends() == 0
    for job in jobs:
        info = await job.result_info()
        assert (info.success, info.job_try) == (True, 1)


async def test_what_does_not_finish_in_time_goes_back_with_its_try(start: MakeService, redis: ArqRedis) -> None:
    service = await start("--queue", "load_test", WORKER_JOB_COMPLETION_WAIT="1", WORKER_STOP_GRACE_SECONDS="13")
    await enqueue_slow(redis, 3, 60)
    stopped = monotonic()
    service.process.terminate()
    assert await service.ends() == 0
    assert monotonic() - stopped < 5
    assert await redis.zcard(LOAD_TEST) == 3
    assert (
        await redis.exists(*(f"{prefix}slow-{i}" for prefix in (keys.IN_PROGRESS, keys.RETRY) for i in range(3))) == 0
    )


async def test_a_second_ctrl_c_does_not_wait(start: MakeService, redis: ArqRedis) -> None:
    service = await start("--queue", "load_test")
    await enqueue_slow(redis, 1, 60)
    service.process.send_signal(signal.SIGINT)
    await asyncio.sleep(0.5)
    service.process.send_signal(signal.SIGINT)
    assert await service.ends(within_s=5) == 0
    assert await redis.zcard(LOAD_TEST) == 1


@pytest.mark.parametrize(
    "does_not_end",
    ["with contextlib.suppress(asyncio.CancelledError): await asyncio.sleep(60)", "await to_thread(time.sleep, 60)"],
)
async def test_a_job_that_passes_over_its_cancellation_holds_up_no_stop(
    redis_server: RedisSettings, redis: ArqRedis, does_not_end: str
) -> None:
    code = f"""
import asyncio, contextlib, sys, time
from asyncio import to_thread
from arq.worker import func
from aegis_worker.process import serve
from aegis_worker.project import current
async def stubborn(ctx):
    await ctx["redis"].set("app:begun", 1)
    while True:
        {does_not_end}
async def shutdown(self):
    print("shut down")
current().worker_class.shutdown = shutdown
current().load("load_test").functions = [func(stubborn, name="stubborn")]
sys.exit(serve.main("load_test"))
"""
    environment = project_environment(redis_server, WORKER_JOB_COMPLETION_WAIT="0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    await redis.enqueue_job("stubborn", _queue_name=LOAD_TEST)
    await eventually(lambda: redis.exists("app:begun"))
    process.terminate()
    async with asyncio.timeout(STOP_MARGIN_S - 2):
        said, _ = await process.communicate()
    assert process.returncode == STUCK_EXIT_CODE
    assert b"shut down" in said
    assert await redis.zcard(LOAD_TEST) == 1
    assert await redis.keys(keys.IN_PROGRESS + "*") == await redis.keys(keys.RETRY + "*") == []


async def test_a_dead_child_ends_the_others_in_order(start: MakeService, redis: ArqRedis) -> None:
    service = await start()
    await eventually(service.healthy)
    jobs = await enqueue_slow(redis, 3, 2)
    os.kill(service.children()["system-1"], signal.SIGKILL)
    assert await service.ends() != 0
    assert all([(await job.result_info()).success for job in jobs])
    assert "stopping" in service.log.read_text()


async def test_children_do_not_outlive_a_killed_parent(start: MakeService, redis: ArqRedis) -> None:
    service = await start()
    await eventually(service.healthy)
    pids = list(service.children().values())
    service.process.kill()
    await service.process.wait()
    await eventually(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))
    assert await replicas.read(redis, SYSTEM) == []


async def test_the_jobs_of_a_killed_worker_start_elsewhere(start: MakeService, redis: ArqRedis) -> None:
    other = await start("--queue", "load_test", WORKER_LEASE_SECONDS="3")
    await eventually(other.healthy)
    with other.standing_still():
        killed = await start("--queue", "load_test", WORKER_LEASE_SECONDS="3")
        jobs = await enqueue_slow(redis, 5, 4)
        killed.kill()
    died = monotonic()

    async def start_again() -> bool:
        tries_over = await redis.mget([keys.RETRY + job.job_id for job in jobs])
        return tries_over == [b"1"] * 5

    await eventually(start_again, within_s=8)
    assert monotonic() - died < 3 + 1.5
    assert [(await job.result(timeout=10, poll_delay=0.05))["seconds"] >= 4 for job in jobs] == [True] * 5


async def test_the_lease_that_is_shipped(start: MakeService, redis: ArqRedis) -> None:
    other = await start("--queue", "load_test")
    await eventually(other.healthy)
    with other.standing_still():
        killed = await start("--queue", "load_test")
        (job,) = await enqueue_slow(redis, 1, 2)
        killed.kill()

    async def starts_again() -> bool:
        return await redis.get(keys.RETRY + job.job_id) == b"1"

    await eventually(starts_again, within_s=15)
    assert (await job.result(timeout=5, poll_delay=0.05))["seconds"] >= 2
    assert (await job.result_info()).job_try == 2


async def test_a_job_that_outlives_the_pause_of_its_worker_ends_once(start: MakeService, redis: ArqRedis) -> None:
    paused = await start("--queue", "load_test", WORKER_LEASE_SECONDS="3")
    (job,) = await enqueue_slow(redis, 1, 1)
    with paused.standing_still():
        other = await start("--queue", "load_test", WORKER_LEASE_SECONDS="3")
        result = await job.result(timeout=12, poll_delay=0.05)
    info = await job.result_info()
    assert (info.success, info.job_try) == (True, 2)
    await eventually(paused.healthy)
    await asyncio.sleep(1.5)
    assert (await job.result_info()).finish_time == info.finish_time, "the late end is fenced off"
    assert result["replica"].endswith(f"-{other.process.pid}")


async def test_a_pause_is_not_taken_for_a_blocked_loop(start: MakeService) -> None:
    service = await start("--queue", "system", WORKER_BLOCKED_LOG_SECONDS="1", WORKER_BLOCKED_EXIT_SECONDS="2")
    await eventually(service.healthy)
    with service.standing_still():
        await asyncio.sleep(3)
    await asyncio.sleep(1)
    assert service.process.returncode is None
    assert "has not turned" not in service.log.read_text()


async def test_a_stuck_child_is_unhealthy(start: MakeService) -> None:
    service = await start()
    assert not service.healthy()
    await eventually(service.healthy)
    child = service.children()["system-1"]
    os.kill(child, signal.SIGSTOP)
    try:
        os.utime(service.beats / "system-1", (time() - 16, time() - 16))  # or we would have to wait as long
        await asyncio.sleep(1.5)
        assert not service.healthy()
    finally:
        os.kill(child, signal.SIGCONT)
    await eventually(service.healthy)


async def test_a_worker_outlives_a_restart_of_redis(start: MakeService, redis: ArqRedis, redis_server: Any) -> None:
    service = await start("--queue", "system", REDIS_SOCKET_TIMEOUT="1")
    await eventually(service.healthy)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    job = await redis.enqueue_job("system_health_check", _queue_name=SYSTEM)
    assert job is not None
    assert (await job.result(timeout=15, poll_delay=0.1))["redis_version"]
    assert service.process.returncode is None


@pytest.mark.parametrize(
    ("variables", "serializer"),
    [
        ({"WORKER_SERIALIZER": "pickle"}, None),  # as a producer that knows of nothing else
        ({"WORKER_SERIALIZER": "json"}, Serializer("json")),
        ({"WORKER_SIGNING_KEY": "n" * 32 + "\n" + "o" * 32}, Serializer(signing_keys=["o" * 32, "n" * 32])),
    ],
    ids=["pickle", "json", "signed"],
)
async def test_a_producer_that_writes_as_the_environment_says(
    start: MakeService, redis: ArqRedis, variables: dict[str, str], serializer: Serializer | None
) -> None:
    redis.job_serializer = serializer and serializer.dumps
    redis.job_deserializer = serializer and serializer.loads
    await start("--queue", "system", **variables)
    job = await redis.enqueue_job("system_health_check", _queue_name=SYSTEM)
    assert job is not None
    assert (await job.result(timeout=15, poll_delay=0.1))["redis_version"]


@pytest.fixture
async def evicting(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", "64mb")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    yield
    await redis.config_set("maxmemory-policy", "noeviction")


@pytest.mark.usefixtures("evicting")
async def test_a_redis_that_drops_jobs_is_refused(start: MakeService) -> None:
    service = await start("--queue", "system")
    assert await service.ends() == 2
    assert "maxmemory-policy allkeys-lru, which drops queued jobs" in service.log.read_text()


async def test_a_redis_that_is_not_there_is_one_line(start: MakeService) -> None:
    service = await start("--queue", "system", REDIS_URL=f"redis://localhost:{free_port()}")
    assert await service.ends() == 2
    lines = [line for line in service.log.read_text().splitlines() if "supervisor:" not in line]
    assert len(lines) == 1
    assert "cannot be reached" in lines[0]


async def test_stock_arq_runs_our_queue_and_checks_its_health(redis_server: RedisSettings, redis: ArqRedis) -> None:
    job = await redis.enqueue_job("system_health_check", _queue_name=SYSTEM)
    assert job is not None
    # The team's project, by the name that the guide gives for this.
    environment = project_environment(redis_server, AEGIS_PROJECT="app.project")
    settings = "app.components.worker.queues.system.WorkerSettings"

    async def stock(option: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "arq", settings, option, cwd=ROOT, env=environment
        )
        return await process.wait()

    assert await stock("--check") == 1
    assert await stock("--burst") == 0
    assert (await job.result(timeout=1))["redis_version"]
