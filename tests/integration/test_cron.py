"""Cron jobs over several replicas, whose clocks differ."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import cron
from arq.connections import ArqRedis, RedisSettings
from arq.cron import CronJob

from aegis_worker import Worker
from aegis_worker.worker.cron import Cron
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker

SECOND = timedelta(seconds=1)


async def tick(ctx: dict[Any, Any]) -> None:
    await ctx["redis"].rpush("test:ticks", ctx["job_id"])


async def ticks(redis: ArqRedis) -> list[str]:
    return [job_id.decode() for job_id in await redis.lrange("test:ticks", 0, -1)]


def every_minute(**options: Any) -> CronJob:
    return cron(tick, name="tick", second=0, microsecond=0, **options)


async def test_each_replica_enqueues_and_one_run_comes_of_it(redis: ArqRedis, serve: MakeWorker) -> None:
    for _ in range(3):
        await serve(functions=[], cron_jobs=[cron(tick, second=set(range(60)), name="tick")])
    await asyncio.sleep(3)
    ran = await ticks(redis)
    assert 2 <= len(ran) == len(set(ran)) <= 4


async def test_a_replica_that_is_behind_does_not_run_it_again(redis: ArqRedis, serve: MakeWorker) -> None:
    """Stock arq would, once the mark of the first run has expired: python-arq/arq#196."""
    at = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)
    job = every_minute()
    job.next_run = at
    await Cron(redis, QUEUE, "in time", [job]).enqueue_due(at, SECOND)
    worker = await serve(functions=[], cron_jobs=[every_minute()])
    await eventually(lambda: worker.jobs_complete)
    await redis.delete(*[key async for key in redis.scan_iter("arq:*")])  # as time would have done
    late = every_minute()
    late.next_run = at
    await Cron(redis, QUEUE, "behind", [late]).enqueue_due(at, SECOND)
    assert await redis.zcard(QUEUE) == 0
    assert late.next_run == at + timedelta(minutes=1)
    await Cron(redis, QUEUE, "behind", [late]).enqueue_due(at + timedelta(minutes=1), SECOND)
    assert await redis.zcard(QUEUE) == 1


async def test_a_replica_that_is_ahead_enqueues_for_the_right_time(redis: ArqRedis) -> None:
    now = datetime.now(UTC)
    job = every_minute()
    job.next_run = now + timedelta(seconds=4)
    await Cron(redis, QUEUE, "ahead", [job]).enqueue_due(now + timedelta(seconds=4), SECOND)
    ((_, due),) = await redis.zrange(QUEUE, 0, -1, withscores=True)
    assert due / 1000 == pytest.approx(now.timestamp() + 4, abs=0.01)


async def test_a_replica_that_is_far_ahead_takes_no_run_from_the_others(redis: ArqRedis) -> None:
    """It asks again and again, until Redis's clock has come as far, and they have enqueued it."""
    now = datetime.now(UTC)
    far = now + timedelta(hours=1)
    job = every_minute()
    job.next_run = far
    for _ in range(2):
        await Cron(redis, QUEUE, "ahead", [job]).enqueue_due(far, SECOND)
    assert job.next_run == far
    assert await redis.zcard(QUEUE) == 0
    job.next_run = now
    await Cron(redis, QUEUE, "right", [job]).enqueue_due(now, SECOND)
    assert await redis.zcard(QUEUE) == 1


async def test_of_two_jobs_of_one_name_no_run_is_lost(redis: ArqRedis) -> None:
    """After an outage both are due, and the one that is listed first is the later."""
    now = datetime.now(UTC)
    late, early = every_minute(), every_minute()
    late.next_run, early.next_run = now, now - timedelta(minutes=5)
    await Cron(redis, QUEUE, "r", [late, early]).enqueue_due(now, SECOND)
    assert await redis.zcard(QUEUE) == 2


async def test_run_at_startup_runs_once_for_replicas_that_start_together(redis: ArqRedis, serve: MakeWorker) -> None:
    for _ in range(3):
        await serve(functions=[], cron_jobs=[every_minute(run_at_startup=True)])
    await asyncio.sleep(1)
    assert len([job_id for job_id in await ticks(redis) if not job_id.endswith("0000")]) == 1


async def test_run_at_startup_runs_again_when_they_start_again(redis: ArqRedis) -> None:
    now = datetime.now(UTC)
    for start in range(3):
        for replica in ("a", "b", "c"):
            await Cron(redis, QUEUE, replica, [every_minute(run_at_startup=True)]).enqueue_due(
                now + start * SECOND, SECOND
            )
        assert await redis.zcard(QUEUE) == start + 1


async def test_runs_that_are_missed_are_made_up_for_once(redis: ArqRedis) -> None:
    """A worker that had no Redis for ten minutes."""
    now = datetime.now(UTC)
    job = every_minute()
    job.next_run = now - timedelta(minutes=10)
    crons = Cron(redis, QUEUE, "r", [job])
    for _ in range(3):
        await crons.enqueue_due(now, timedelta())
    assert await redis.zcard(QUEUE) == 1
    assert job.next_run is not None
    assert job.next_run > now


async def test_a_job_that_is_not_unique_runs_in_each(redis: ArqRedis) -> None:
    now = datetime.now(UTC)
    for replica in ("a", "b"):
        job = every_minute(unique=False)
        job.next_run = now
        await Cron(redis, QUEUE, replica, [job]).enqueue_due(now, SECOND)
    assert await redis.zcard(QUEUE) == 2


async def test_burst_does_not_wait_for_what_is_deferred(redis: ArqRedis, redis_server: RedisSettings) -> None:
    await redis.enqueue_job("tick", _queue_name=QUEUE)
    await redis.enqueue_job("tick", _queue_name=QUEUE, _defer_by=60)
    worker = Worker([tick], queue_name=QUEUE, redis_settings=redis_server, burst=True, handle_signals=False)
    async with asyncio.timeout(5):
        await worker.async_run()
    await worker.close()
    assert len(await ticks(redis)) == 1
