"""Requests to abort a job: which run of which job they end, and when they are forgotten."""

from __future__ import annotations

import asyncio
from time import time

import pytest
from arq.connections import ArqRedis

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Claim
from aegis_worker.worker.runs import Cause
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, enqueue, result

DAY_MS = 86_400_000


async def test_a_deferred_job_that_is_aborted_does_not_run_where_running_ones_cannot_be(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """``Job.abort`` makes it due before it asks for the abort."""
    await serve(allow_abort_jobs=False)
    job = await enqueue(redis, "counted", 0, _defer_by=3600)
    assert await job.abort(timeout=5, poll_delay=0.01)
    info = await job.result_info()
    assert info is not None
    assert (info.success, type(info.result)) == (False, asyncio.CancelledError)
    assert not await redis.exists(f"runs:{job.job_id}", keys.dead(QUEUE), keys.ABORT, QUEUE)
    assert "not run: aborted" in caplog.text


async def test_a_running_job_goes_on_where_it_cannot_be_aborted(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(allow_abort_jobs=False)
    job = await enqueue(redis, "counted", 1)
    await eventually(lambda: redis.exists(f"runs:{job.job_id}"))
    assert not await job.abort(timeout=5, poll_delay=0.01)
    assert await result(job) == 1
    assert not await redis.exists(keys.ABORT)


async def test_to_abort_what_has_ended_does_not_hit_the_next_job_of_that_id(redis: ArqRedis, serve: MakeWorker) -> None:
    """Neither when it begins nor while it runs, when each pulse looks at the requests."""
    worker = await serve()
    ended = await enqueue(redis, "counted", 0, _job_id="again")
    assert await result(ended) == 1
    assert not await ended.abort(timeout=5)
    assert await redis.zscore(keys.ABORT, "again")
    await redis.delete(keys.RESULT + "again")
    await asyncio.sleep(0.005)  # a request in the very millisecond would be for the next one
    job = await enqueue(redis, "counted", 1.2, _job_id="again")
    await eventually(lambda: redis.exists(keys.IN_PROGRESS + "again"))
    await worker._parts.runner.interrupt_aborted(redis)
    assert await result(job) == 2
    assert not await redis.exists(keys.ABORT), "with the job that bore the id, the request has gone"


async def test_requests_are_forgotten_after_a_day(redis: ArqRedis, serve: MakeWorker) -> None:
    now = int(time() * 1000)
    await redis.zadd(keys.ABORT, {"old": now - DAY_MS - 1000, "young": now - DAY_MS + 60_000, "new": now})
    await serve()

    async def forgotten() -> bool:
        return await redis.zscore(keys.ABORT, "old") is None

    await eventually(forgotten)
    assert await redis.zrange(keys.ABORT, 0, -1) == [b"young", b"new"]


@pytest.mark.parametrize("cause", [Cause.ABORT, Cause.STOP, Cause.LOST])
async def test_what_interrupts_a_job_before_its_first_step_is_heeded(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    """A task that is cancelled before that runs none of its code: the job would be in progress for its whole time."""
    worker = await serve(lease=0.6)
    runner = worker._parts.runner
    whole = runner.start

    def start(claim: Claim, *, begin: bool) -> None:
        monkeypatch.setattr(runner, "start", whole)
        whole(claim, begin=begin)
        worker._parts.runner.runs.get(claim.lease.job_id).interrupt(cause)

    monkeypatch.setattr(runner, "start", start)
    job = await enqueue(redis, "counted", 0)
    if cause is Cause.ABORT:
        with pytest.raises(asyncio.CancelledError):
            await result(job, within_s=3)
        assert not await redis.exists(f"runs:{job.job_id}")
    else:  # by this worker again, as there is no other
        assert await result(job, within_s=3) == 1
    assert not worker._parts.runner.runs


async def test_an_abort_that_comes_as_the_job_ends_leaves_its_result(redis: ArqRedis, serve: MakeWorker) -> None:
    """``Job.abort`` takes a running job for a deferred one, and puts it back though it has ended since."""
    await serve()
    job = await enqueue(redis, "counted", 0)
    assert await result(job) == 1
    await redis.zadd(QUEUE, {job.job_id: 1})
    await redis.zadd(keys.ABORT, {job.job_id: int(time() * 1000)})
    await eventually(lambda: gone(redis))
    assert await result(job) == 1
    assert not await redis.exists(keys.dead(QUEUE), keys.ABORT, keys.leases(QUEUE))


async def gone(redis: ArqRedis) -> bool:
    return not await redis.exists(QUEUE)
