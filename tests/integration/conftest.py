"""What the tests of the runtime share: tasks, workers that serve until a test ends, a stock producer's two steps."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from app.components.worker.runtime import Worker, dead, keys
from tests.conftest import eventually

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
        await eventually(lambda: worker._running and (worker._listener.proved or worker.burst))
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
    (found,) = await dead.read(redis, QUEUE, [job_id])
    return found
