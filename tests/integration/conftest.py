"""What these tests share: tasks, workers that serve until a test ends, a stock producer's two steps, ``my-app``."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from aegis_worker import Worker
from aegis_worker.queue import admin, keys
from tests.conftest import ROOT, eventually, project_environment

QUEUE = "arq:queue:test"


async def echo(ctx: dict[Any, Any], value: object = None) -> object:
    return value


async def now(ctx: dict[Any, Any]) -> float:
    return time.time()


async def slow(ctx: dict[Any, Any], seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def counted(ctx: dict[Any, Any], seconds: float) -> int:
    count = await ctx["redis"].incr(f"runs:{ctx['job_id']}")
    await asyncio.sleep(seconds)
    return int(count)


async def blocks(ctx: dict[Any, Any], seconds: float) -> int:
    count = await ctx["redis"].incr(f"runs:{ctx['job_id']}")
    time.sleep(seconds)  # noqa: ASYNC251 - what a task must not do
    return int(count)


async def fails(ctx: dict[Any, Any]) -> None:
    raise KeyError("the original error")


MakeWorker = Callable[..., Any]


@pytest.fixture
async def serve(redis: ArqRedis, redis_server: RedisSettings) -> AsyncIterator[MakeWorker]:
    """Starts workers that serve until the test ends."""
    started: list[tuple[Worker, asyncio.Task[None]]] = []

    async def start(**options: Any) -> Worker:
        given: dict[str, Any] = {
            "functions": [echo, now, slow, counted, blocks, fails],
            "queue_name": QUEUE,
            "redis_settings": redis_server,
            "replica": f"r{len(started)}",
            "poll_delay": 60,
            "handle_signals": False,
            "allow_abort_jobs": True,
            "health_check_interval": 0.2,
        }
        worker = Worker(**(given | options))
        task = asyncio.create_task(worker.async_run())
        started.append((worker, task))
        await eventually(lambda: worker._parts and (worker._parts.listener.proved or worker.burst))
        return worker

    yield start
    for worker, task in started:
        worker.handle_sig(signal.SIGTERM)
        await asyncio.gather(task, return_exceptions=True)
        await worker.close()


async def enqueue(redis: ArqRedis, name: str, *args: Any, **options: Any) -> Job:
    job = await redis.enqueue_job(name, *args, _queue_name=QUEUE, **options)
    assert job is not None
    return job


async def result(job: Job, within_s: float = 10) -> Any:
    return await job.result(timeout=within_s, poll_delay=0.01)


async def letter(redis: ArqRedis, job_id: str) -> dict[str, Any]:
    """Return a job's dead letter, once it is there."""

    async def died() -> bool:
        return await redis.zscore(keys.dead(QUEUE), job_id) is not None

    await eventually(died)
    (found,) = await admin.dead_letters(redis, QUEUE, [job_id])
    return found


# -- the command line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    def refuses(self, *texts: str, code: int = 2) -> None:
        """Check that it is one line that says why, and nothing else."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.count("\n") == 1, self.err
        for text in texts:
            assert text in self.err


class Cli:
    """``my-app`` with an environment of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, *arguments: str, **variables: str) -> Any:
        return asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aegis_worker", *arguments),
            cwd=ROOT,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def __call__(self, command: str, *arguments: str, **variables: str) -> Answer:
        """Run a command, whose words are parted by blanks; ``arguments`` are words that may hold some."""
        async with asyncio.timeout(30):
            return await ended(await self.start(*command.split(), *arguments, **variables))

    async def each(self, *commands: str, **variables: str) -> list[Answer]:
        """Run commands at the same time."""
        return await asyncio.gather(*(self(command, **variables) for command in commands))


async def ended(process: asyncio.subprocess.Process) -> Answer:
    out, err = await process.communicate()
    assert process.returncode is not None
    answer = Answer(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in answer.err, answer.err
    return answer


@pytest.fixture(scope="module")
def cli(redis_server: RedisSettings, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    url = f"redis://localhost:{redis_server.port}"
    return Cli(
        project_environment(
            redis_server,
            REDIS_URL_LOCAL=url,
            WORKER_DATA_DIR=str(tmp_path_factory.mktemp("data")),
            WORKER_HEALTH_CHECK_INTERVAL="1",
            WORKER_LOAD_TEST_MAX_TRIES="2",
            APP_VERSION="7.1",
            LOG_FORMAT="text",
        )
    )
