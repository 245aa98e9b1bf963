"""Our own producers: jobs as a stock producer makes them, many at a time or one."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError, OutOfMemoryError

from aegis_worker import NewJob, Producer, enqueue_many
from aegis_worker.queue import keys
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, enqueue, result


async def test_its_jobs_are_those_of_a_stock_producer(redis: ArqRedis) -> None:
    when = datetime.now(UTC) + timedelta(hours=1)
    stock = [
        await redis.enqueue_job("f", 1, _job_id="a", _queue_name=QUEUE, x=2),
        await redis.enqueue_job("f", _job_id="b", _queue_name=QUEUE, _defer_by=60, _expires=90),
        await redis.enqueue_job("f", _job_id="c", _queue_name=QUEUE, _defer_until=when),
    ]
    many = await enqueue_many(
        redis,
        [
            NewJob("f", (1,), {"x": 2}, job_id="A"),
            NewJob("f", job_id="B", defer_by=60, expires=90),
            NewJob("f", job_id="C", defer_until=when),
        ],
        queue_name=QUEUE,
    )
    for theirs, ours in zip(stock, many, strict=True):
        assert theirs is not None
        assert ours is not None
        expected, found = await theirs.info(), await ours.info()
        assert expected is not None
        assert found is not None
        assert (found.function, found.args, found.kwargs) == (expected.function, expected.args, expected.kwargs)
        assert found.score == pytest.approx(expected.score, abs=200)
        assert await redis.pttl(keys.JOB + ours.job_id) == pytest.approx(
            await redis.pttl(keys.JOB + theirs.job_id), abs=200
        )
        assert await ours.status() == await theirs.status()


async def test_its_times_are_those_that_a_stock_producer_takes(redis: ArqRedis) -> None:
    minute = timedelta(minutes=1)
    stock = await redis.enqueue_job("f", _job_id="a", _queue_name=QUEUE, _defer_by=minute, _expires=2 * minute)
    ours = await Producer(redis).enqueue(NewJob("f", defer_by=minute, expires=2 * minute), queue_name=QUEUE)
    assert stock is not None
    assert ours is not None
    for key in (keys.JOB + stock.job_id, keys.JOB + ours.job_id):
        assert await redis.pttl(key) == pytest.approx(120_000, abs=200)
    due = [score for _, score in await redis.zrange(QUEUE, 0, -1, withscores=True)]
    assert due[0] == pytest.approx(due[1], abs=200)
    with pytest.raises(ValueError, match="exclude"):
        await enqueue_many(redis, [NewJob("f", defer_by=1, defer_until=datetime.now(UTC))])


async def test_an_id_that_is_in_use_is_left_out(redis: ArqRedis, serve: MakeWorker) -> None:
    await enqueue(redis, "echo", 1, _job_id="there", _defer_by=60)
    jobs = [NewJob("echo", (n,), job_id=name) for n, name in enumerate(("there", "new", "new"))]
    first, second, third = await enqueue_many(redis, jobs, queue_name=QUEUE)
    assert (first, third) == (None, None)
    assert second is not None
    await serve()
    assert await result(second) == 1
    assert await enqueue_many(redis, jobs[1:2], queue_name=QUEUE) == [None], "its result is kept"


async def test_a_connection_of_its_own(redis: ArqRedis, serve: MakeWorker) -> None:
    producer = Producer(redis)
    sent = [
        await producer.enqueue(NewJob("echo", (1,), unique="x"), queue_name=QUEUE),
        *await producer.enqueue_many([NewJob("echo", (2,)), NewJob("echo", (3,), unique="x")], queue_name=QUEUE),
        await producer.enqueue(NewJob("echo", (4,), unique="x"), queue_name=QUEUE),
    ]
    assert [job is not None for job in sent] == [True, True, False, False]
    await redis.client_kill_filter(_type="normal", skipme=True)
    with contextlib.suppress(ConnectionError):  # whoever uses it first may be told
        await producer.enqueue(NewJob("echo", (5,), job_id="again"), queue_name=QUEUE)
    sent.append(await producer.enqueue(NewJob("echo", (6,)), queue_name=QUEUE))
    await serve()
    assert [await result(job) for job in sent if job] == [1, 2, 6]
    producer.close()


async def test_many_thousands_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    sent = await enqueue_many(redis, (NewJob("echo", (n,)) for n in range(5000)), queue_name=QUEUE)
    assert len(sent) == await redis.zcard(QUEUE) == 5000
    worker = await serve(max_jobs=500)
    assert sent[-1] is not None
    assert await result(sent[-1]) == 4999
    assert worker.jobs_complete >= 4500


async def test_a_batch_is_one_event(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    asked = time.time()
    sent = await enqueue_many(redis, [NewJob("now") for _ in range(10)], queue_name=QUEUE)
    assert max([await result(job) for job in sent if job]) - asked < 0.5


async def test_a_full_redis_takes_the_whole_batch_or_nothing(redis: ArqRedis) -> None:
    before = (await redis.config_get("maxmemory"))["maxmemory"]
    await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] - 100_000)
    try:
        with pytest.raises(OutOfMemoryError):
            await enqueue_many(redis, [NewJob("echo") for _ in range(10)], queue_name=QUEUE)
    finally:
        await redis.config_set("maxmemory", before)
    assert await redis.dbsize() == 0


async def test_a_time_that_redis_cannot_hold_loses_no_job(redis: ArqRedis) -> None:
    """It would refuse it in the middle of the batch, with some payloads written, and nothing queued."""
    jobs = [NewJob("echo", job_id="first"), NewJob("echo", job_id="second", expires=1e300)]
    assert all(await enqueue_many(redis, jobs, queue_name=QUEUE))
    assert await redis.zcard(QUEUE) == 2


async def test_a_job_that_runs_past_its_payload_still_holds_id_and_unique_key(
    redis: ArqRedis, serve: MakeWorker
) -> None:
    worker = await serve()
    await enqueue_many(redis, [NewJob("slow", (60,), job_id="held", unique="x", expires=0.2)], queue_name=QUEUE)
    await eventually(lambda: worker.tasks)
    await eventually(lambda: expired(redis, "held"))
    refused = [NewJob("echo", (1,), unique="x"), NewJob("echo", (1,), job_id="held")]
    assert await enqueue_many(redis, refused, queue_name=QUEUE) == [None, None]


async def expired(redis: ArqRedis, job_id: str) -> bool:
    return not await redis.exists(keys.JOB + job_id)
