"""Wake-up: who is told of a job, by a message or by the bell, and what a claim that waits in Redis does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic, perf_counter

import pytest
from arq.connections import ArqRedis, RedisSettings

from app.components.worker.runtime import NewJob, Producer, Worker, enqueue_many, keys
from app.components.worker.runtime.scripts import Scripts
from app.components.worker.runtime.wake import Listener
from app.components.worker.runtime.wire import Wire
from app.components.worker.runtime.worker import IDLE_LOOK_S
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, result, slow

# -- messages ----------------------------------------------------------------------------------------------------


async def test_an_idle_worker_is_told_of_a_job_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    waits = []
    for _ in range(20):
        asked = time.time()
        waits.append(await result(await enqueue(redis, "now")) - asked)
    assert sorted(waits)[10] < 0.05


async def test_a_worker_that_is_busy_with_one_job_is_told_of_the_next(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(max_jobs=10)
    await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    waits = []
    for _ in range(20):
        asked = time.time()
        waits.append(await result(await enqueue(redis, "now")) - asked)
    assert sorted(waits)[10] < 0.05
    assert len(worker.tasks) == 1


async def test_events_that_cease_cost_no_more_than_a_slow_look(redis: ArqRedis, serve: MakeWorker) -> None:
    """They were proved, and the worker idles: nothing tells it that it hears no more."""
    worker = await serve(poll_delay=0.5)
    await parked(worker)
    async with no_messages(redis):
        for _ in range(2):
            asked = time.time()
            assert await result(await enqueue(redis, "now"), within_s=8) - asked < IDLE_LOOK_S + 0.5


async def test_a_deferred_job_starts_when_it_is_due(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    asked = time.time()
    job = await enqueue(redis, "now", _defer_by=0.5)
    assert 0.5 <= await result(job) - asked < 0.7


async def test_a_slot_that_is_free_claims_at_once(redis: ArqRedis, redis_server: RedisSettings) -> None:
    jobs = [await enqueue(redis, "slow", 0.05) for _ in range(40)]
    begun = perf_counter()
    worker = Worker(
        [slow],
        queue_name=QUEUE,
        redis_settings=redis_server,
        max_jobs=10,
        burst=True,
        handle_signals=False,
        poll_delay=60,
    )
    await worker.async_run()
    took = perf_counter() - begun
    await worker.close()
    assert took < 1, "arq takes 2 s, 0.2 are the least"
    assert worker.jobs_complete == len(jobs)


async def test_without_keyspace_events_it_looks_as_often_as_arq(redis: ArqRedis, redis_server: RedisSettings) -> None:
    await redis.config_set("notify-keyspace-events", "")
    try:
        worker = Worker([echo], queue_name=QUEUE, redis_settings=redis_server, poll_delay=0.1, handle_signals=False)
        task = asyncio.create_task(worker.async_run())
        await eventually(lambda: worker._running and worker._listener.listening)
        assert await result(await enqueue(redis, "echo", 1), within_s=3) == 1
        assert not worker._listener.proved
        worker.handle_sig(signal.SIGTERM)
        await task
        await worker.close()
    finally:
        await redis.config_set("notify-keyspace-events", "Kz")


async def test_an_abort_is_seen_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve()
    job = await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    asked = monotonic()
    assert await job.abort(timeout=5, poll_delay=0.01)
    assert monotonic() - asked < 1


# -- the bell ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def producer(redis: ArqRedis) -> AsyncIterator[Producer]:
    producer = Producer(redis)
    yield producer
    producer.close()


@asynccontextmanager
async def no_messages(redis: ArqRedis) -> AsyncIterator[None]:
    """The bell alone can tell."""
    await redis.config_set("notify-keyspace-events", "")
    try:
        yield
    finally:
        await redis.config_set("notify-keyspace-events", "Kz")


async def parked(*workers: Worker) -> None:
    await eventually(lambda: all(worker._listener._parked for worker in workers))
    await asyncio.sleep(0.05)  # for the claim to be in Redis


async def test_the_bell_is_enough(redis: ArqRedis, serve: MakeWorker, producer: Producer) -> None:
    worker = await serve()
    await parked(worker)
    begun = monotonic()
    async with no_messages(redis):
        for n in range(5):
            job = await producer.enqueue(NewJob("echo", (n,)), queue_name=QUEUE)
            assert job is not None
            assert await result(job) == n
            await parked(worker)
        many = await producer.enqueue_many([NewJob("echo", (n,)) for n in range(50)], queue_name=QUEUE)
        assert [await result(job) for job in many if job] == list(range(50))
    assert monotonic() - begun < 2, "a look comes after 4 s"


async def test_the_bell_is_for_one_of_those_that_idle(
    redis: ArqRedis, serve: MakeWorker, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await serve() for _ in range(3)]
    await parked(*workers)
    claims = 0
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: object) -> object:
        nonlocal claims
        claims += 1
        return await whole(self, *asked)  # type: ignore[arg-type]

    monkeypatch.setattr(Scripts, "claim", claim)
    async with no_messages(redis):
        job = await producer.enqueue(NewJob("echo", (1,)), queue_name=QUEUE)
        assert job is not None
        assert await result(job) == 1
        await parked(*workers)
        assert sorted(worker.jobs_complete for worker in workers) == [0, 0, 1]
    assert claims <= 4, "of the one that got it"


async def test_a_bell_that_rang_for_nobody_is_heard_by_the_next_that_idles(
    redis: ArqRedis, serve: MakeWorker, producer: Producer
) -> None:
    await producer.enqueue(NewJob("echo"), queue_name=QUEUE)
    assert await redis.exists(keys.bell(QUEUE))
    worker = await serve()
    await parked(worker)
    await eventually(lambda: worker.jobs_complete == 1)
    assert not await redis.exists(keys.bell(QUEUE))


async def test_a_worker_that_stands_still_takes_one_job_at_most(redis: ArqRedis, serve: MakeWorker) -> None:
    """Its claim waits in Redis, with nobody to read the reply; the job is had by others when the lease lapses."""
    wire = Wire(redis.connection_pool)
    gone = Listener(
        redis.connection_pool,
        QUEUE,
        on_job=lambda: None,
        on_abort=lambda: None,
        call=wire.call,
        park_s=0.5,
    )
    scripts = Scripts(wire.call, QUEUE, lease_s=1, ends_s=600)
    reply = asyncio.create_task(scripts.claim(1, gone.park))
    await asyncio.sleep(0.1)
    jobs = await enqueue_many(redis, [NewJob("now") for _ in range(5)], queue_name=QUEUE)
    enqueued = time.time()
    await serve()
    waits = sorted([await result(job) - enqueued for job in jobs if job])
    assert len((await reply).jobs) == 1
    assert waits[3] < 0.5 < 0.9 < waits[4] < 3
    enqueued = time.time()
    jobs = await enqueue_many(redis, [NewJob("now") for _ in range(5)], queue_name=QUEUE)
    assert max([await result(job) for job in jobs if job]) - enqueued < 0.5, "and then no more"
    gone.close()
    wire.close()


async def test_a_claim_that_waits_is_over_at_its_time(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(lease=0.6)  # for a third of it
    await parked(worker)
    number = worker._scripts._claims
    await eventually(lambda: worker._scripts._claims > number + 2, within_s=2)
    assert worker._failures == 0


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
async def test_a_signal_ends_what_waits(redis: ArqRedis, serve: MakeWorker, full: bool) -> None:
    worker = await serve()
    await parked(worker)
    before = (await redis.config_get("maxmemory"))["maxmemory"]
    if full:
        await redis.config_set("maxmemory", 1)
    try:
        begun = monotonic()
        worker.handle_sig(signal.SIGTERM)
        await asyncio.wait_for(worker.main_task, 5)
        assert monotonic() - begun < 2
    finally:
        await redis.config_set("maxmemory", before)
    await worker.close()


async def test_a_bell_that_is_broken_costs_time_and_no_job(
    redis: ArqRedis, serve: MakeWorker, producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.set(keys.bell(QUEUE), "a text")
    worker = await serve()
    for n in range(10):
        job = await producer.enqueue(NewJob("counted", (0,)), queue_name=QUEUE)
        assert job is not None
        assert await result(job, within_s=3) == 1
        await asyncio.sleep(0.1 * (n % 3))
    assert worker.jobs_complete == 10
    assert "WRONGTYPE" in caplog.text
