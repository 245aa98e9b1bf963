"""Claims whose reply is lost, copies of commands that arrive late, replicas that idle together, clocks that differ."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus
from arq.utils import timestamp_ms
from redis.exceptions import ConnectionError

from aegis_worker import Backoff, NewJob, enqueue_many
from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Claims, Scripts
from aegis_worker.queue.settlement import Completed, Lease, Reply, Returned, Settlement
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, enqueue, result


async def length(ctx: dict[Any, Any], value: bytes) -> int:
    return len(value)


def scripts_of(redis: ArqRedis, lease_s: float = 60) -> Scripts:
    return Scripts(redis.execute_command, QUEUE, lease_s=lease_s, ends_s=600)


async def test_a_claim_whose_reply_is_lost_burns_no_try(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs go back as soon as Redis is there again, and are claimed anew."""
    lost: list[str] = []
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: Any) -> Claims:
        claims = await whole(self, *asked)
        if claims.jobs and not lost:
            lost.extend(claim.lease.job_id for claim in claims.jobs)
            raise ConnectionError("the reply is lost")
        return claims

    monkeypatch.setattr(Scripts, "claim", claim)
    await serve(lease=60, max_tries=1)
    job = await enqueue(redis, "counted", 0)
    assert await result(job, within_s=5) == 1
    assert lost == [job.job_id]
    assert (await job.result_info()).job_try == 1  # type: ignore[union-attr]


async def test_a_claim_that_arrives_late_takes_nothing(redis: ArqRedis) -> None:
    await enqueue(redis, "echo")
    ours, others = scripts_of(redis), scripts_of(redis)
    assert await ours.recall([]) == 0
    ours._claims -= 1  # the copy of an earlier one
    assert (await ours.claim(1)).jobs == []
    assert len((await ours.claim(1)).jobs) == 1, "the next one is in time"
    await enqueue(redis, "echo")
    assert len((await others.claim(1)).jobs) == 1, "other workers have fences of their own"


async def test_only_claims_that_nobody_knows_are_recalled(redis: ArqRedis) -> None:
    jobs = [await enqueue(redis, "echo") for _ in range(3)]
    ours, others = scripts_of(redis), scripts_of(redis)
    (known,) = (await ours.claim(1)).jobs
    (forgotten,) = (await ours.claim(1)).jobs
    await others.claim(1)
    assert await ours.recall([known.lease]) == 1
    assert await redis.exists(*(keys.IN_PROGRESS + job.job_id for job in jobs)) == 2
    (again,) = (await ours.claim(3)).jobs
    assert (again.lease.job_id, again.tries) == (forgotten.lease.job_id, 1)


async def test_a_copy_of_a_settlement_does_not_touch_the_next_claim(redis: ArqRedis) -> None:
    job = await enqueue(redis, "echo")
    ours = scripts_of(redis)
    (first,) = (await ours.claim(1)).jobs
    back = Returned(first.lease, first.due_ms)
    assert await ours.settle([back]) == [1]
    (second,) = (await ours.claim(1)).jobs
    assert second.lease.token != first.lease.token
    assert await ours.settle([back]) == [0]
    assert await job.status() == JobStatus.in_progress
    assert await ours.settle([Completed(second.lease, keep_ms=1000)]) == [1]
    assert await ours.settle([Completed(second.lease, keep_ms=1000)]) == [0]


async def test_a_job_of_a_lapsed_lease_that_is_given_back_is_due(redis: ArqRedis) -> None:
    await enqueue(redis, "echo")
    await scripts_of(redis, lease_s=0.05).claim(1)
    await asyncio.sleep(0.1)
    ours = scripts_of(redis)
    (claim,) = (await ours.claim(1)).jobs
    assert claim.tries == 2
    await ours.settle([Returned(claim.lease, claim.due_ms)])
    (again,) = (await ours.claim(1)).jobs
    assert again.tries == 2


async def test_a_lease_is_found_lapsed_at_once(redis: ArqRedis) -> None:
    """Also by a claim that looks in the very millisecond in which it lapses."""
    await enqueue(redis, "echo")
    scripts = scripts_of(redis, lease_s=0.05)
    await scripts.claim(1)
    async with asyncio.timeout(0.8):
        while not (await scripts.claim(1)).jobs:
            pass


async def test_a_lapsed_lease_is_not_hidden_by_one_that_a_stock_worker_took(redis: ArqRedis) -> None:
    first, second, _ = [await enqueue(redis, "echo", _job_id=job_id) for job_id in "abc"]
    await scripts_of(redis).claim(2)
    await redis.delete(keys.IN_PROGRESS + second.job_id)
    await redis.set(keys.IN_PROGRESS + first.job_id, b"1", px=60_000)
    await redis.zadd(keys.leases(QUEUE), {first.job_id: 1, second.job_id: 2})
    (claim,) = (await scripts_of(redis).claim(1)).jobs
    assert (claim.lease.job_id, claim.lapsed, claim.tries) == (second.job_id, True, 2)


@pytest.mark.parametrize("score", ["+inf", "-inf", "1e300"])
async def test_a_job_that_runs_may_be_given_any_score(redis: ArqRedis, score: str) -> None:
    await enqueue(redis, "echo")
    await scripts_of(redis, lease_s=0.05).claim(1)
    ((job_id, _),) = await redis.zrange(QUEUE, 0, -1, withscores=True)
    await redis.execute_command("ZADD", QUEUE, score, job_id)
    await asyncio.sleep(0.1)
    ours = scripts_of(redis)
    (claim,) = (await ours.claim(1)).jobs
    assert claim.lapsed
    assert await redis.zscore(QUEUE, claim.lease.job_id) == pytest.approx(timestamp_ms() + 600_000, abs=10_000)


async def test_what_a_batch_needs_is_a_call_of_a_script(redis: ArqRedis, serve: MakeWorker) -> None:
    await redis.config_resetstat()
    jobs = await enqueue_many(redis, [NewJob("echo", (n,)) for n in range(250)], queue_name=QUEUE)
    assert await calls_of_scripts(redis) <= 2, "or one, where Redis knows the script"
    worker = await serve(max_jobs=500)
    await eventually(lambda: worker.jobs_complete == 250 and not worker._parts.runner.runs)
    assert await calls_of_scripts(redis) < 25
    assert [await result(job) for job in jobs if job] == list(range(250))


async def calls_of_scripts(redis: ArqRedis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def test_a_claim_looks_at_no_job_that_runs(redis: ArqRedis, serve: MakeWorker) -> None:
    first = await serve(max_jobs=300)
    running = [await enqueue(redis, "slow", 2) for _ in range(300)]
    await eventually(lambda: len(first.tasks) == 300)
    assert await redis.zcount(QUEUE, "-inf", timestamp_ms()) == 0
    assert await redis.zcard(keys.leases(QUEUE)) == 300
    assert await running[0].status() == JobStatus.in_progress
    await serve()
    assert await result(await enqueue(redis, "echo", "through")) == "through"
    assert {await result(job) for job in running} == {"slept"}


async def test_a_lease_that_lapsed_and_was_claimed_by_nobody_else_is_taken_up_again(
    redis: ArqRedis, serve: MakeWorker
) -> None:
    """As after a pause of the whole process: what it still runs ends once, and ends as ours."""
    worker = await serve(lease=60)
    job = await enqueue(redis, "counted", 1)
    await eventually(lambda: redis.exists(f"runs:{job.job_id}"))
    (before,) = worker._parts.runner.runs.leases()
    await redis.delete(keys.IN_PROGRESS + job.job_id)
    await redis.zadd(keys.leases(QUEUE), {job.job_id: 1})
    token = before.token
    await enqueue(redis, "echo")  # has it look
    await eventually(lambda: worker._parts.runner.runs.leases()[0].token != token)
    assert await result(job) == 1
    assert await redis.get(f"runs:{job.job_id}") == b"1"
    assert (await job.result_info()).job_try == 1  # type: ignore[union-attr]


async def test_an_end_that_a_claim_of_ours_overtakes_is_stored(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a pause of the whole process, when the claim goes out first: the end bears the old lease's token."""
    worker = await serve(lease=60)
    whole = Scripts.settle

    async def settle(self: Scripts, batch: Sequence[Settlement]) -> list[int]:
        monkeypatch.setattr(Scripts, "settle", whole)
        sent = [replace(end, lease=replace(end.lease)) for end in batch]
        await redis.delete(keys.IN_PROGRESS + job.job_id)
        await redis.zadd(keys.leases(QUEUE), {job.job_id: 1})
        (claim,) = (await worker._parts.intake._scripts.claim(1)).jobs
        worker._parts.runner.start(claim)
        return await whole(self, sent)

    monkeypatch.setattr(Scripts, "settle", settle)
    job = await enqueue(redis, "counted", 0)
    assert await result(job) == 1
    await eventually(lambda: not worker._parts.runner.runs)
    assert await redis.get(f"runs:{job.job_id}") == b"1"
    assert not await redis.exists(keys.leases(QUEUE), QUEUE)


async def test_a_job_that_is_claimed_again_before_we_hear_that_it_was_settled_runs(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scripts.settle

    async def settle(self: Scripts, batch: Sequence[Settlement]) -> list[int]:
        taken = await whole(self, batch)
        await asyncio.sleep(0.2)  # the event comes first
        return taken

    monkeypatch.setattr(Scripts, "settle", settle)
    await serve(backoff=Backoff(0.001, 0.001), max_tries=3)
    job = await enqueue(redis, "fails")
    with pytest.raises(KeyError):
        await result(job, within_s=3)
    assert (await job.result_info()).job_try == 3  # type: ignore[union-attr]


async def test_an_end_that_comes_after_its_lease_lapsed_counts_while_nobody_has_the_job(redis: ArqRedis) -> None:
    """Redis was away for longer than the lease: what is finished need not be run again."""
    jobs = [await enqueue(redis, "echo") for _ in range(2)]
    ours, others = scripts_of(redis), scripts_of(redis)
    claims = (await ours.claim(2)).jobs
    await redis.delete(*(keys.IN_PROGRESS + job.job_id for job in jobs))
    await redis.zadd(keys.leases(QUEUE), {claims[1].lease.job_id: 1})
    assert len((await others.claim(2)).jobs) == 1
    ends = [Completed(claim.lease, keep_ms=1000) for claim in claims]
    assert await ours.settle(ends) == [Reply.DONE, Reply.LOST]
    assert await ours.settle(ends) == [Reply.OVER, Reply.LOST]


async def test_a_renewal_that_comes_after_a_job_went_back_does_not_take_it(redis: ArqRedis) -> None:
    """The renewal was on its way, from its own thread, when the job was given back."""
    await enqueue(redis, "echo")
    ours = scripts_of(redis)
    (claim,) = (await ours.claim(1)).jobs
    assert await ours.settle([Returned(claim.lease, claim.due_ms)]) == [1]
    assert await ours.renew([claim.lease]) == [claim.lease]
    assert len((await scripts_of(redis).claim(1)).jobs) == 1


async def test_an_end_whose_reply_is_lost_is_told_from_one_that_came_too_late(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two jobs that ended while Redis was away, one was taken over by another worker: it has no result of ours."""
    whole, ended = Scripts.settle, []
    sent: set[str] = set()

    async def settle(self: Scripts, batch: Sequence[Settlement]) -> list[int]:
        taken = await whole(self, batch)
        if unheard := {end.lease.job_id for end in batch} - sent:
            sent.update(unheard)
            raise ConnectionError("the reply is lost")
        return taken

    async def after(ctx: dict[Any, Any]) -> None:
        ended.append(ctx["job_id"])

    monkeypatch.setattr(Scripts, "settle", settle)
    worker = await serve(after_job_end=after)
    ours, theirs = [await enqueue(redis, "counted", 1) for _ in range(2)]
    await eventually(lambda: redis.exists(f"runs:{theirs.job_id}"))
    await asyncio.sleep(0.5)  # the leases were renewed, and will not be again
    await redis.set(keys.IN_PROGRESS + theirs.job_id, "somebody else's token")
    assert await result(ours) == 1
    await eventually(lambda: not worker._parts.runner.runs and ended)
    assert ended == [ours.job_id]
    assert f"the lease of job {theirs.job_id} was lost before its end was stored" in caplog.text
    assert f"the lease of job {ours.job_id}" not in caplog.text
    assert await theirs.result_info() is None


async def test_a_lease_that_is_lost_says_nothing_of_the_next_one(redis: ArqRedis, serve: MakeWorker) -> None:
    """News of a renewal come late: the job was retried at once meanwhile, and is ours again."""
    worker = await serve()
    job = await enqueue(redis, "counted", 0.3)
    await eventually(lambda: worker._parts.runner.runs.leases())
    worker._parts.runner.runs.lose([Lease(job.job_id, "an older token")])
    assert await result(job) == 1


async def test_jobs_that_others_took_while_we_stood_still_are_not_started(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scripts.claim
    stood_still = asyncio.Event()

    async def claim(self: Scripts, *asked: Any) -> Claims:
        claims = await whole(self, *asked)
        if claims.jobs and not stood_still.is_set():
            stood_still.set()
            await asyncio.sleep(1)
            await redis.set(keys.IN_PROGRESS + jobs[0].job_id, "somebody else's token")
        return claims

    monkeypatch.setattr(Scripts, "claim", claim)
    jobs = [await enqueue(redis, "counted", 0) for _ in range(2)]
    await serve(lease=0.5)
    assert await result(jobs[1]) == 1
    assert await redis.get(f"runs:{jobs[0].job_id}") is None


async def test_a_count_of_tries_that_is_no_number_harms_nobody(redis: ArqRedis, serve: MakeWorker) -> None:
    job = await enqueue(redis, "echo", 1)
    await redis.set(keys.RETRY + job.job_id, "many")
    await serve()
    assert await result(job) == 1


async def test_a_worker_that_cannot_store_ends_any_more_ends_itself(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve()
    worker._parts.commits._task.cancel()
    worker._wake.set()
    with pytest.raises(asyncio.CancelledError):
        await worker.main_task


async def test_more_than_a_listener_may_be_sent_is_claimed_at_once(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis ends a connection that listens when 32 MiB wait to be read by it."""
    worker = await serve(functions=[length], max_jobs=64)
    await redis.set(keys.paused(QUEUE), 1)
    jobs = await enqueue_many(redis, [NewJob("length", (bytes(1 << 20),)) for _ in range(40)], queue_name=QUEUE)
    await redis.delete(keys.paused(QUEUE))
    await enqueue(redis, "length", b"")
    assert [await result(job) for job in jobs if job] == [1 << 20] * 40
    assert worker.jobs_complete == 41
    assert "unavailable" not in caplog.text


# -- after an outage -----------------------------------------------------------------------------------------------


async def test_nobody_claims_until_others_had_time_to_renew(redis: ArqRedis) -> None:
    """Where for two thirds of a lease nobody claimed or renewed, and one has lapsed, Redis was away."""
    ours, others = scripts_of(redis, lease_s=3), scripts_of(redis, lease_s=3)
    for job_id in "ab":
        await enqueue(redis, "echo", _job_id=job_id)
    (held,) = (await ours.claim(1)).jobs
    await redis.delete(keys.IN_PROGRESS + held.lease.job_id)
    await redis.zadd(keys.leases(QUEUE), {held.lease.job_id: 1})
    await redis.set(keys.last_active(QUEUE), int(time.time() * 1000) - 2000)

    assert await others.claim(2) == ([], 1.5, True, False)
    assert await ours.renew([held.lease]) == []
    waits = await others.claim(2)
    assert waits.jobs == []
    assert 1 < waits.wait_s <= 1.5  # type: ignore[operator]
    await asyncio.sleep(waits.wait_s + 0.01)  # type: ignore[operator]
    assert [claim.lease.job_id for claim in (await others.claim(2)).jobs] == ["b"]


@pytest.mark.parametrize("ago_s", [1, -3600], ids=["somebody was there", "the clock went back"])
async def test_a_lapsed_lease_is_not_waited_for_without_an_outage(redis: ArqRedis, ago_s: int) -> None:
    await enqueue(redis, "echo")
    (lost,) = (await scripts_of(redis, lease_s=3).claim(1)).jobs
    await redis.delete(keys.IN_PROGRESS + lost.lease.job_id)
    await redis.zadd(keys.leases(QUEUE), {lost.lease.job_id: 1})
    await redis.set(keys.last_active(QUEUE), int((time.time() - ago_s) * 1000))
    assert len((await scripts_of(redis, lease_s=3).claim(1)).jobs) == 1


async def test_renewals_tell_that_somebody_is_there(redis: ArqRedis) -> None:
    await enqueue(redis, "echo")
    ours = scripts_of(redis, lease_s=3)
    (held,) = (await ours.claim(1)).jobs
    await redis.set(keys.last_active(QUEUE), 1)
    await ours.renew([held.lease])
    assert float(await redis.get(keys.last_active(QUEUE))) > time.time() * 1000 - 1000
    await redis.zadd(keys.leases(QUEUE), {"lapsed": 1})
    await redis.set(keys.last_active(QUEUE), 1)
    await ours.renew([held.lease])
    assert float(await redis.get(keys.last_active(QUEUE))) > time.time() * 1000 + 1000, "the first to notice"


async def test_jobs_before_the_epoch_hide_none(redis: ArqRedis) -> None:
    """Whose score a claim has to remove first, so that its pages move."""
    jobs = {f"odd {n}": -1 - n for n in range(3)} | {f"job {n}": n for n in range(10)}
    for job_id in jobs:
        await redis.set(keys.JOB + job_id, b"x")
    await redis.zadd(QUEUE, jobs)
    await redis.set(keys.IN_PROGRESS + "job 0", b"1", px=60_000)
    claims = await scripts_of(redis).claim(10)
    assert len(claims.jobs) == 10
    assert len((await scripts_of(redis).claim(10)).jobs) == 2
