"""A worker is stopped at a bad moment: no job is left with a lease, none has a try less, none runs twice."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings

from aegis_worker import NewJob, Worker, enqueue_many
from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Claims, Scripts
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, counted, enqueue


async def locks(redis: ArqRedis) -> list[bytes]:
    return [*await redis.keys(keys.IN_PROGRESS + "*"), *await redis.keys(keys.RETRY + "*")]


@pytest.mark.parametrize("how", ["signal", "cancel", "close"])
async def test_a_claim_that_is_on_its_way_is_given_back(redis: ArqRedis, redis_server: RedisSettings, how: str) -> None:
    """Redis stands still, takes the claim after the worker has given up, and nobody hears of the jobs."""
    given: dict[str, Any] = {"queue_name": QUEUE, "redis_settings": redis_server, "handle_signals": False}
    worker = Worker([counted], max_jobs=10, max_tries=1, lease=3, job_completion_wait=0, **given)
    await enqueue_many(redis, [NewJob("counted", (0.05,)) for _ in range(200)], queue_name=QUEUE)
    serving = asyncio.create_task(worker.async_run())
    await eventually(lambda: worker.jobs_complete > 10)
    await redis.client_pause(1500)
    await asyncio.sleep(0.15)  # whatever ran has ended, and the next claim is out
    if how == "signal":
        worker.handle_sig(signal.SIGTERM)
    elif how == "cancel":
        serving.cancel()
    if how != "close":
        await asyncio.gather(serving, return_exceptions=True)
    await worker.close()
    await asyncio.gather(serving, return_exceptions=True)
    assert await locks(redis) == []

    last = Worker([counted], max_jobs=100, burst=True, max_tries=1, **given)
    await last.async_run()
    await last.close()
    assert await redis.exists(keys.dead(QUEUE), QUEUE) == 0
    runs = await redis.mget(await redis.keys("runs:*"))
    assert runs == [b"1"] * 200


async def test_a_signal_between_claim_and_start(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed, go_on = Scripts.claim, asyncio.Event(), asyncio.Event()

    async def held(self: Scripts, *args: Any) -> Claims:
        claims = await claim(self, *args)
        if claims.jobs:
            claimed.set()
            await go_on.wait()
        return claims

    monkeypatch.setattr(Scripts, "claim", held)
    worker = await serve()
    job = await enqueue(redis, "counted", 0)
    await claimed.wait()
    worker.handle_sig(signal.SIGTERM)
    go_on.set()
    await worker.main_task
    await worker.close()
    assert await locks(redis) == []
    assert await redis.zrange(QUEUE, 0, -1) == [job.job_id.encode()]
    assert not await redis.exists(f"runs:{job.job_id}")
