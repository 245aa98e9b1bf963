"""What a queue may ask for beyond arq, over several replicas: a rate, a concurrency, unique keys, tries."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from arq import Retry, func
from arq.connections import ArqRedis

from aegis_worker import Backoff, NewJob, RateLimit, enqueue_many
from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Scripts
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, result

RUNNING, MOST = "test:running", "test:most"


async def overlaps(ctx: dict[Any, Any], seconds: float, key: str = "") -> int:
    """Return how many of us ran at the most while this one began."""
    running = await ctx["redis"].incr(RUNNING + key)
    await asyncio.sleep(seconds)
    await ctx["redis"].decr(RUNNING + key)
    return int(running)


async def test_a_rate_is_kept_over_all_replicas(redis: ArqRedis, serve: MakeWorker) -> None:
    limit = RateLimit(10, 0.5)
    for _ in range(3):
        await serve(rate_limit=limit)
    begun = time.monotonic()
    jobs = await enqueue_many(redis, [NewJob("now") for _ in range(45)], queue_name=QUEUE)
    starts = sorted([await result(job) for job in jobs if job])
    took = time.monotonic() - begun
    assert 2.0 <= took < 2.6, "45 jobs need four periods after the first"
    # In any window; a claim takes a moment to become a start.
    assert all(later - earlier > 0.45 for earlier, later in zip(starts, starts[10:], strict=False))


async def test_a_rate_leaves_other_slots_alone(redis: ArqRedis) -> None:
    await enqueue_many(redis, [NewJob("now") for _ in range(30)], queue_name=QUEUE)
    scripts = Scripts(redis.execute_command, QUEUE, lease_s=60, ends_s=600, rate_limit=RateLimit(20, 60))
    first, second = await scripts.claim(15), await scripts.claim(15)
    assert (len(first.jobs), first.limited) == (15, False)
    assert (len(second.jobs), second.limited) == (5, True)
    assert second.wait_s == pytest.approx(60, abs=1)
    assert (await scripts.claim(15)).jobs == []


async def test_a_concurrency_is_kept_over_all_replicas(redis: ArqRedis, serve: MakeWorker) -> None:
    for _ in range(3):
        await serve(functions=[overlaps], global_concurrency=4)
    begun = time.monotonic()
    jobs = await enqueue_many(redis, [NewJob("overlaps", (0.05,)) for _ in range(60)], queue_name=QUEUE)
    assert max([await result(job) for job in jobs if job]) == 4
    assert time.monotonic() - begun < 3, "a job that ends wakes those that wait: 0.75 s are the least"


async def test_a_concurrency_counts_a_dead_workers_jobs_until_they_run_again(
    redis: ArqRedis, serve: MakeWorker
) -> None:
    jobs = [await enqueue(redis, "counted", 0) for _ in range(3)]
    await Scripts(redis.execute_command, QUEUE, lease_s=0.5, ends_s=600, global_concurrency=2).claim(3)
    await serve(global_concurrency=2)
    assert [await result(job, within_s=5) for job in jobs] == [1, 1, 1]


async def test_of_jobs_with_one_key_one_is_there(redis: ArqRedis, serve: MakeWorker) -> None:
    """Three replicas, producers at the same time, and each key's jobs one after the other."""
    for _ in range(3):
        await serve(functions=[overlaps])

    async def produce() -> list[Any]:
        kept = []
        for n in range(40):
            key = f"key {n % 4}"
            kept += await enqueue_many(redis, [NewJob("overlaps", (0.01, key), unique=key)], queue_name=QUEUE)
            await asyncio.sleep(0.005)
        return kept

    answers = [answer for batch in await asyncio.gather(*(produce() for _ in range(4))) for answer in batch]
    jobs = [job for job in answers if job]
    assert {await result(job) for job in jobs} == {1}
    assert 4 < len(jobs) < len(answers), "refused while one is there, accepted after it"


async def test_a_key_is_free_when_its_job_is_over(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(functions=[func(fails_first, name="fails_first"), echo], max_tries=2)
    (job,) = await enqueue_many(redis, [NewJob("fails_first", unique="invoice 7")], queue_name=QUEUE)
    assert job is not None
    await eventually(lambda: worker.jobs_retried)
    assert await enqueue_many(redis, [NewJob("echo", unique="invoice 7")], queue_name=QUEUE) == [None]
    assert await result(job) == 2
    (after,) = await enqueue_many(redis, [NewJob("echo", (1,), unique="invoice 7")], queue_name=QUEUE)
    assert after is not None, "its result is kept, its key is not"
    assert await result(after) == 1


async def fails_first(ctx: dict[Any, Any]) -> int:
    if ctx["job_try"] == 1:
        raise Retry(defer=0.2)
    return int(ctx["job_try"])


async def raises(ctx: dict[Any, Any], kind: str) -> None:
    await ctx["redis"].incr(f"runs:{kind}")
    raise {"TimeoutError": TimeoutError, "ConnectionError": ConnectionError, "ValueError": ValueError}[kind]


async def test_only_what_the_queue_names_is_tried_again(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(functions=[raises], max_tries=3, backoff=Backoff(0.01, 0.01), retry_on=(ConnectionError, TimeoutError))
    for kind, runs in {"ConnectionError": b"3", "TimeoutError": b"3", "ValueError": b"1"}.items():
        with pytest.raises((ConnectionError, TimeoutError, ValueError)):
            await result(await enqueue(redis, "raises", kind))
        assert await redis.get(f"runs:{kind}") == runs
    assert await redis.zcard(keys.dead(QUEUE)) == 3
