"""Wake-up: who is told of a job, by a message or by the bell, and what a claim that waits in Redis does."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic, perf_counter

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.worker import JobExecutionFailed

from aegis_worker import NewJob, Producer, Worker, enqueue_many
from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Scripts
from aegis_worker.redis.wire import Wire
from aegis_worker.worker.idle import IDLE_POLL_S
from aegis_worker.worker.wake import LISTENERS, Listener
from tests.conftest import PASSWORD, ROOT, eventually
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, now, result, slow

# -- messages ----------------------------------------------------------------------------------------------------


async def test_an_idle_worker_is_told_of_a_job_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    waits = []
    for _ in range(20):
        asked = time.time()
        waits.append(await result(await enqueue(redis, "now")) - asked)
    assert sorted(waits)[10] < 0.05
    assert max(waits) < 0.5


async def test_a_worker_that_is_busy_with_one_job_is_told_of_the_next(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(max_jobs=10)
    await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    waits = []
    for _ in range(20):
        asked = time.time()
        waits.append(await result(await enqueue(redis, "now")) - asked)
    assert sorted(waits)[10] < 0.05
    assert max(waits) < 0.5
    assert len(worker.tasks) == 1


async def test_events_that_cease_cost_no_more_than_a_slow_look(redis: ArqRedis, serve: MakeWorker) -> None:
    """They were proved, and the worker idles: nothing tells it that it hears no more."""
    worker = await serve(poll_delay=0.5)
    await parked(worker)
    async with no_messages(redis):
        for _ in range(2):
            asked = time.time()
            assert await result(await enqueue(redis, "now"), within_s=8) - asked < IDLE_POLL_S + 0.5


async def test_a_deferred_job_starts_when_it_is_due(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    asked = time.time()
    job = await enqueue(redis, "now", _defer_by=0.5)
    assert 0.5 <= await result(job) - asked < 0.7


async def test_a_slot_that_is_free_claims_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    begun = perf_counter()
    await serve(max_jobs=2)
    for job in [await enqueue(redis, "slow", 0.05) for _ in range(20)]:
        await result(job)
    assert perf_counter() - begun < 1.5, "0.5 s are the least; with ten looks at an idle worker's pace it were 50"


async def test_without_keyspace_events_it_looks_as_often_as_arq(redis: ArqRedis, redis_server: RedisSettings) -> None:
    await redis.config_set("notify-keyspace-events", "")
    try:
        worker = Worker([echo], queue_name=QUEUE, redis_settings=redis_server, poll_delay=0.1, handle_signals=False)
        task = asyncio.create_task(worker.async_run())
        await eventually(lambda: worker._parts and worker._parts.listener.connected)
        assert await result(await enqueue(redis, "echo", 1), within_s=3) == 1
        assert not worker._parts.listener.proved
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


# -- those that listen -------------------------------------------------------------------------------------------


async def listening(redis: ArqRedis) -> int:
    ((_, count),) = await redis.pubsub_numsub(f"__keyspace@0__:{QUEUE}")
    return int(count)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[Scripts]:
    """Gets an entry for each claim."""
    made: list[Scripts] = []
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: object) -> object:
        made.append(self)
        return await whole(self, *asked)  # type: ignore[arg-type]

    monkeypatch.setattr(Scripts, "claim", claim)
    return made


async def test_of_many_that_idle_two_listen_and_all_get_jobs(
    redis: ArqRedis, serve: MakeWorker, claims: list[Scripts]
) -> None:
    workers = [await serve() for _ in range(8)]
    await parked(*workers)
    assert await listening(redis) == LISTENERS
    claims.clear()
    for n in range(40):
        assert await result(await enqueue(redis, "echo", n)) == n
        await parked(*workers)
    assert min(worker.jobs_complete for worker in workers) > 0, "those that waited longest come first"
    assert len(claims) < 40 * 6, "with the one that got the job, one in vain, and both look again"


async def test_of_too_many_that_listen_some_stop(redis: ArqRedis, serve: MakeWorker) -> None:
    workers = [await serve(lease=0.6) for _ in range(4)]  # so that a claim waits for a third of that
    for worker in workers:
        worker._parts.listener.listening = True
        await worker._parts.listener._wire.call("SUBSCRIBE", worker._parts.listener._queue_channel)
    await eventually(lambda: sum(worker._parts.listener.listening for worker in workers) == LISTENERS)
    await eventually(lambda: listening_is(redis, LISTENERS))
    assert await result(await enqueue(redis, "echo", 1)) == 1


async def listening_is(redis: ArqRedis, count: int) -> bool:
    return await listening(redis) == count


async def test_who_can_take_no_more_has_another_listen(redis: ArqRedis, serve: MakeWorker) -> None:
    workers = [await serve(max_jobs=1) for _ in range(6)]
    await parked(*workers)
    for running in range(1, 7):
        begun = monotonic()
        await enqueue(redis, "slow", 3)
        await eventually(lambda n=running: sum(len(worker.tasks) for worker in workers) == n)  # type: ignore[misc]
        assert monotonic() - begun < 0.5, "a look comes after 4 s"
    assert await listening(redis) == 0


async def test_who_stops_has_another_listen(redis: ArqRedis, serve: MakeWorker) -> None:
    workers = [await serve() for _ in range(4)]
    await parked(*workers)
    for worker in workers[:3]:
        worker.handle_sig(signal.SIGTERM)
        await worker.main_task
    begun = monotonic()
    assert await result(await enqueue(redis, "echo", 1)) == 1
    assert monotonic() - begun < 0.5


async def test_where_those_that_listen_are_deaf_another_does(redis: ArqRedis, serve: MakeWorker) -> None:
    deaf = [redis.pubsub() for _ in range(LISTENERS)]
    for each in deaf:
        await each.subscribe(f"__keyspace@0__:{QUEUE}")
    await eventually(lambda: listening_is(redis, LISTENERS))
    worker = await serve(lease=3, max_jobs=1)  # so that a claim waits for one second
    await parked(worker)
    await asyncio.sleep(1.2)
    assert not worker._parts.listener.listening
    assert await result(await enqueue(redis, "echo", 1), within_s=2) == 1
    for n in range(10):
        await eventually(lambda: worker._parts.listener.listening)
        await parked(worker)
        begun = monotonic()
        assert await result(await enqueue(redis, "echo", n)) == n
        assert monotonic() - begun < 0.3
    for each in deaf:
        await each.aclose()


async def test_what_falls_due_while_the_one_that_knows_of_it_is_busy(redis: ArqRedis, serve: MakeWorker) -> None:
    workers = [await serve(max_jobs=1, functions=[slow, now]) for _ in range(4)]
    for _ in range(3):
        await parked(*workers)
        asked = time.time()
        jobs = [NewJob("slow", (1.5,), defer_by=0.3), NewJob("now", defer_by=0.6)]
        _, job = await enqueue_many(redis, jobs, queue_name=QUEUE)
        assert job is not None
        assert await result(job) - asked < 0.9
        await eventually(lambda: not any(worker.tasks for worker in workers))


async def test_while_its_loop_is_blocked_one_that_listens_tells_others(redis: ArqRedis, serve: MakeWorker) -> None:
    """Its keeper does, which rings every tick; else the job would wait for a look."""
    code = f"""
from arq.connections import RedisSettings
from aegis_worker import Worker
from tests.integration.conftest import QUEUE, blocks
settings = RedisSettings(port={redis.connection_pool.connection_kwargs["port"]}, password={PASSWORD!r})
Worker([blocks], queue_name=QUEUE, redis_settings=settings).run()
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT)
    try:
        await eventually(lambda: listening_is(redis, 1))
        worker = await serve(functions=[now])
        deaf = redis.pubsub()
        await deaf.subscribe(f"__keyspace@0__:{QUEUE}")
        await worker._parts.listener.unlisten()
        await parked(worker)
        blocked = await enqueue(redis, "blocks", 3)
        await eventually(lambda: redis.exists(f"runs:{blocked.job_id}"))
        await asyncio.sleep(0.3)
        asked = time.time()
        assert await result(await enqueue(redis, "now")) - asked < 0.8
        await deaf.aclose()
    finally:
        process.kill()
        await process.wait()


async def test_jobs_that_one_leaves_behind_are_taken_by_others(redis: ArqRedis, serve: MakeWorker) -> None:
    workers = [await serve(max_jobs=2) for _ in range(5)]
    await parked(*workers)
    begun = monotonic()
    async with no_messages(redis):
        await enqueue_many(redis, [NewJob("slow", (1,)) for _ in range(10)], queue_name=QUEUE)
        await eventually(lambda: sum(len(worker.tasks) for worker in workers) == 10)
    assert monotonic() - begun < 0.5, "the bell rang once for them all"


async def test_a_job_behind_one_that_takes_long_starts_at_once(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(max_jobs=10)
    await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    await parked(worker)
    waits = []
    for _ in range(20):
        asked = time.time()
        waits.append(await result(await enqueue(redis, "now")) - asked)
    assert sorted(waits)[10] < 0.05


# -- the bell ----------------------------------------------------------------------------------------------------


async def test_for_few_jobs_the_bell_is_enough_and_where_it_cannot_be_rung_they_are_told_of(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    events = redis.pubsub()
    await events.subscribe(f"__keyspace@0__:{QUEUE}")

    async def told() -> list[bytes]:
        await redis.zadd(QUEUE, {"the last": 0})
        await redis.zrem(QUEUE, "the last")
        found: list[bytes] = []
        while not found or found[-1] != b"zrem":
            message = await events.get_message(ignore_subscribe_messages=True, timeout=5)
            if message:
                found.append(message["data"])
        return found[:-2]

    await enqueue_many(redis, [NewJob("echo", job_id="a"), NewJob("echo", job_id="b")], queue_name=QUEUE)
    assert await told() == [b"zincr", b"zincr"]
    before = await redis.zscore(QUEUE, "a")
    await redis.delete(keys.JOB + "a")  # expired, and still in the queue
    await enqueue_many(redis, [NewJob("echo", job_id="a", defer_by=10)], queue_name=QUEUE)
    assert before + 9_000 < await redis.zscore(QUEUE, "a") < before + 20_000
    assert await told() == [b"zadd"]
    await enqueue_many(redis, [NewJob("echo") for _ in range(9)], queue_name=QUEUE)
    assert await told() == [b"zadd"]
    await redis.set(keys.bell(QUEUE), "broken")
    await enqueue_many(redis, [NewJob("echo")], queue_name=QUEUE)
    assert await told() == [b"zadd"]
    await events.aclose()


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
    await eventually(lambda: all(worker._parts.listener._parked for worker in workers))
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
    redis: ArqRedis, serve: MakeWorker, producer: Producer, claims: list[Scripts]
) -> None:
    workers = [await serve() for _ in range(3)]
    await parked(*workers)
    claims.clear()
    async with no_messages(redis):
        job = await producer.enqueue(NewJob("echo", (1,)), queue_name=QUEUE)
        assert job is not None
        assert await result(job) == 1
        await parked(*workers)
        assert sorted(worker.jobs_complete for worker in workers) == [0, 0, 1]
    assert len(claims) <= 4, "of the one that got it"


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
    reply = asyncio.create_task(scripts.claim(1, partial(gone.park, within_s=0.5)))
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


async def test_a_job_that_went_to_a_worker_which_is_gone_was_not_tried(redis: ArqRedis, serve: MakeWorker) -> None:
    """Where nobody read the reply to a claim that waited; the next worker to vanish with the job has tried it."""
    await redis.zadd(keys.bell(QUEUE), {"": 0})
    wire = Wire(redis.connection_pool)
    job = await enqueue(redis, "echo", 1)
    gone = Scripts(wire.call, QUEUE, lease_s=0.5, ends_s=600)
    assert (await gone.claim(1, wire.call)).jobs[0].tries == 1
    worker = await serve(max_tries=1)
    assert await result(job) == 1
    assert (await job.result_info()).job_try == 1  # type: ignore[union-attr]

    twice = await enqueue(redis, "echo", 1, _defer_by=0.3)
    worker.handle_sig(signal.SIGTERM)
    await worker.main_task
    await asyncio.sleep(0.3)
    for _ in range(2):
        await eventually(lambda: claimed(gone, wire))
    await serve(max_tries=1)
    with pytest.raises(JobExecutionFailed, match="max 1 retries exceeded"):
        await result(twice)
    wire.close()


async def claimed(scripts: Scripts, wire: Wire) -> bool:
    return bool((await scripts.claim(1, wire.call)).jobs)


async def test_a_claim_that_waited_counts_as_a_try_once_it_was_read(
    redis: ArqRedis, serve: MakeWorker, producer: Producer
) -> None:
    worker = await serve()
    await parked(worker)
    job = await producer.enqueue(NewJob("slow", (2,)), queue_name=QUEUE)
    assert job is not None
    lapses = await redis.zscore(keys.leases(QUEUE), job.job_id)
    assert lapses is not None
    assert lapses % 1
    await eventually(lambda: is_whole(redis, job.job_id), within_s=1)


async def is_whole(redis: ArqRedis, job_id: str) -> bool:
    return bool(await redis.zscore(keys.leases(QUEUE), job_id) % 1 == 0)


async def test_a_claim_that_waits_is_over_at_its_time(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(lease=0.6)  # for a third of it
    await parked(worker)
    number = worker._parts.intake._scripts._claims
    await eventually(lambda: worker._parts.intake._scripts._claims > number + 2, within_s=2)
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
    worker = await serve()
    await parked(worker)
    await redis.set(keys.bell(QUEUE), "a text")
    for n in range(10):
        job = await producer.enqueue(NewJob("counted", (0,)), queue_name=QUEUE)
        assert job is not None
        assert await result(job, within_s=3) == 1
        await asyncio.sleep(0.1 * (n % 3))
    assert worker.jobs_complete == 10
    assert "WRONGTYPE" in caplog.text
