"""Burst mode: it ends when nothing is left to be done, no sooner and no later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq import cron
from arq.connections import ArqRedis, RedisSettings

from aegis_worker import RateLimit, Worker
from tests.integration.conftest import QUEUE, counted, echo, enqueue


async def run(redis_server: RedisSettings, **options: Any) -> Worker:
    given: dict[str, Any] = {"functions": [echo, counted], "queue_name": QUEUE, "redis_settings": redis_server}
    worker = Worker(burst=True, handle_signals=False, **given | options)
    async with asyncio.timeout(4):
        await worker.async_run()
    return worker


@pytest.mark.parametrize("limit", [{"global_concurrency": 2}, {"rate_limit": RateLimit(2, 30)}], ids=str)
async def test_a_limit_that_keeps_nothing_back(
    redis: ArqRedis, redis_server: RedisSettings, limit: dict[str, Any]
) -> None:
    for _ in range(2):
        await enqueue(redis, "echo")
    worker = await run(redis_server, **limit)
    await worker.close()
    assert worker.jobs_complete == 2


async def test_what_is_due_when_it_starts_is_run(redis: ArqRedis, redis_server: RedisSettings) -> None:
    jobs = [cron(echo, name=f"c{n}", run_at_startup=True) for n in range(200)]
    worker = await run(redis_server, functions=[], cron_jobs=jobs)
    await worker.close()
    assert (worker.jobs_complete, await redis.zcard(QUEUE)) == (200, 0)


async def test_hooks_have_ended(redis: ArqRedis, redis_server: RedisSettings) -> None:
    async def after_job_end(ctx: dict[Any, Any]) -> None:
        await asyncio.sleep(0.2)
        ended.append(ctx["job_id"])

    ended: list[str] = []
    job = await enqueue(redis, "echo")
    worker = await run(redis_server, after_job_end=after_job_end)
    assert ended == [job.job_id]
    await worker.close()


async def test_once_more(redis: ArqRedis, redis_server: RedisSettings) -> None:
    worker = await run(redis_server)
    await enqueue(redis, "echo")
    async with asyncio.timeout(4):
        assert await worker.run_check() == 1
    await worker.close()


async def test_hooks_keep_their_slots(redis: ArqRedis, redis_server: RedisSettings) -> None:
    """Or those of a slow hook would pile up."""

    async def after_job_end(ctx: dict[Any, Any]) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    most = running = 0
    for _ in range(300):
        await enqueue(redis, "echo")
    worker = await run(redis_server, max_jobs=5, after_job_end=after_job_end)
    await worker.close()
    assert worker.jobs_complete == 300
    assert most <= 20
