"""What a worker counts: each try of a job once, by how it ended, and nothing that is no try."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from arq import Retry
from arq.connections import ArqRedis, RedisSettings
from arq.worker import FailedJobs, func
from redis.exceptions import ConnectionError

from aegis_worker import Worker
from aegis_worker.queue import keys, replicas
from aegis_worker.queue.scripts import Scripts
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, echo, enqueue


def burst(redis_server: RedisSettings, **options: Any) -> Worker:
    given: dict[str, Any] = {"functions": [echo], "queue_name": QUEUE, "redis_settings": redis_server, "burst": True}
    return Worker(**given | {"handle_signals": False, "poll_delay": 0.2} | options)


async def counts(worker: Worker) -> tuple[int, int, int]:
    """Run a burst, and return how many jobs were complete, failed and retried."""
    async with asyncio.timeout(10):
        await worker.async_run()
    await worker.close()
    return worker.jobs_complete, worker.jobs_failed, worker.jobs_retried


async def test_an_id_that_a_late_abort_left_is_no_job(redis: ArqRedis, redis_server: RedisSettings) -> None:
    await enqueue(redis, "echo", 1)
    await redis.zadd(QUEUE, {"ended long ago": 1})
    assert await counts(burst(redis_server)) == (1, 0, 0)


async def test_a_job_that_is_left_to_others_is_no_retry(redis: ArqRedis, redis_server: RedisSettings) -> None:
    """Nor does it count for the jobs that a burst may start."""
    state = {"state": "running", "functions": ["foreign"]}
    await replicas.record(redis, QUEUE, "peer", state, interval_s=60)
    await enqueue(redis, "foreign")
    await asyncio.sleep(0.01)
    await enqueue(redis, "echo", 1)
    assert await counts(burst(redis_server, max_burst_jobs=1, max_jobs=1)) == (1, 0, 0)


async def test_a_try_whose_payload_expires_is_a_failure(redis: ArqRedis, redis_server: RedisSettings) -> None:
    """It was to be retried, and cannot be."""

    async def expires(ctx: dict[str, Any]) -> None:
        await redis.delete(keys.JOB + ctx["job_id"])
        raise Retry(defer=0)

    await enqueue(redis, "expires")
    assert await counts(burst(redis_server, functions=[func(expires, name="expires")])) == (0, 1, 0)


async def test_a_job_that_fails_in_the_drain_is_counted_when_it_is_over(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    async def late(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(0.3)
        raise KeyError("late")

    worker = burst(redis_server, functions=[func(late, name="late")], job_completion_wait=5)
    await enqueue(redis, "late")
    checked = asyncio.create_task(worker.run_check())
    await eventually(lambda: worker.tasks)
    worker.handle_sig(signal.SIGTERM)
    with pytest.raises(FailedJobs):
        await checked
    await worker.close()


async def test_a_burst_starts_no_more_than_its_limit_though_a_reply_is_lost(
    redis: ArqRedis, redis_server: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retried job is claimed anew before its first end is known to be stored."""
    whole, sent, started = Scripts.settle, [], []

    async def settle(self: Scripts, batch: Any) -> list[int]:
        replies = await whole(self, batch)
        sent.append(batch)
        if len(sent) == 1:
            raise ConnectionError("the reply is lost")
        return replies

    async def twice(ctx: dict[str, Any]) -> None:
        started.append(ctx["job_id"])
        if len(started) == 1:
            raise Retry(defer=0)
        await asyncio.sleep(1)

    async def more() -> None:
        await eventually(lambda: len(started) == 2)
        for _ in range(3):
            await enqueue(redis, "twice")
        worker._wake.set()

    monkeypatch.setattr(Scripts, "settle", settle)
    monkeypatch.setattr("aegis_worker.worker.commits.RECONNECT", SimpleNamespace(delay=lambda failures: 0.5))
    await enqueue(redis, "twice")
    worker = burst(redis_server, functions=[func(twice, name="twice")], max_burst_jobs=2, max_jobs=5)
    _, ended = await asyncio.gather(more(), counts(worker))
    assert (len(started), ended) == (2, (1, 0, 1))
