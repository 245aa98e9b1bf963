"""What the runtime adds to arq: wake-up, leases, fencing, dead letters, a watchdog; with stock producers throughout."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from arq import cron, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job, JobStatus, serialize_job
from arq.worker import JobExecutionFailed, Retry
from redis.exceptions import OutOfMemoryError

from aegis_worker import Backoff, Worker
from aegis_worker.queue import admin, keys, replicas, scripts
from aegis_worker.queue.scripts import Scripts
from redis import Redis
from tests.conftest import ROOT, eventually
from tests.integration.conftest import QUEUE, MakeWorker, counted, echo, enqueue, fails, result, slow

# -- leases ------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_for_as_long_as_the_job_runs(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(lease=0.6)
    job = await enqueue(redis, "counted", 2)
    await serve(lease=0.6)
    assert await result(job) == 1
    assert await redis.zcard(keys.leases(QUEUE)) == 0


async def test_a_blocked_loop_keeps_its_leases_and_is_reported(
    redis: ArqRedis, redis_server: RedisSettings, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def is_held() -> bool:
        with Redis(port=redis_server.port, password=redis_server.password) as client:
            while not client.exists(mark):
                time.sleep(0.01)
            until = monotonic() + 1.5
            while client.exists(mark) and monotonic() < until:
                time.sleep(0.05)
            return monotonic() >= until

    await serve(lease=0.6, blocked_log=0.5)
    mark = keys.IN_PROGRESS + "blocked"
    held = asyncio.create_task(asyncio.to_thread(is_held))  # this loop is the one that is blocked
    job = await enqueue(redis, "blocks", 2, _job_id="blocked")
    assert await result(job) == 1
    assert await held
    assert await redis.get(f"runs:{job.job_id}") == b"1"
    assert "the event loop has not turned for" in caplog.text
    assert "time.sleep(seconds)" in caplog.text


async def test_a_loop_that_is_blocked_for_too_long_ends_its_process(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    await enqueue(redis, "blocks", 60)
    code = f"""
from arq.connections import RedisSettings
from aegis_worker import Worker
from tests.integration.conftest import QUEUE, blocks
settings = RedisSettings(port={redis_server.port}, password={redis_server.password!r})
Worker([blocks], queue_name=QUEUE, redis_settings=settings, blocked_log=0.5, blocked_exit=1).run()
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stderr=subprocess.PIPE)
    async with asyncio.timeout(10):
        _, said = await process.communicate()
    assert process.returncode == 70
    assert b"time.sleep(seconds)" in said


async def test_the_jobs_of_a_worker_that_died_start_elsewhere(redis: ArqRedis, serve: MakeWorker) -> None:
    job = await enqueue(redis, "counted", 0)
    scripts = Scripts(redis.execute_command, QUEUE, lease_s=0.7, ends_s=60)  # a worker's, which then does no more
    (claim,) = (await scripts.claim(1)).jobs
    assert (claim.lease.job_id, claim.tries) == (job.job_id, 1)
    await serve()
    assert await result(job, within_s=2) == 1
    assert (await job.result_info()).job_try == 2  # type: ignore[union-attr]


async def test_a_worker_that_lost_its_lease_changes_nothing(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await serve(lease=0.6)
    job = await enqueue(redis, "counted", 60)
    await eventually(lambda: redis.exists(f"runs:{job.job_id}"))
    await redis.set(keys.IN_PROGRESS + job.job_id, "somebody else's token", px=60_000)
    await eventually(lambda: not worker.tasks)
    assert f"the lease of job {job.job_id} is lost" in caplog.text
    assert await job.status() == JobStatus.in_progress
    assert await redis.get(keys.IN_PROGRESS + job.job_id) == b"somebody else's token"
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (0, 0, 0)


async def test_a_late_result_is_fenced_off(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await serve(lease=60)
    job = await enqueue(redis, "counted", 1)
    await eventually(lambda: redis.exists(f"runs:{job.job_id}"))
    await asyncio.sleep(0.5)  # the lease was renewed, and will not be again
    await redis.set(keys.IN_PROGRESS + job.job_id, "somebody else's token", px=60_000)
    await eventually(lambda: not worker._parts.runner.runs)
    assert "was lost before its end was stored" in caplog.text
    assert await job.result_info() is None
    assert await redis.zscore(QUEUE, job.job_id) is not None


async def test_a_connection_that_falls_silent_loses_no_lease(redis: ArqRedis, serve: MakeWorker) -> None:
    """That on which leases are renewed: the next try, over another one, comes in time."""
    worker = await serve(lease=1.2)
    job = await enqueue(redis, "counted", 3)
    await eventually(lambda: worker._parts.keeper._wire._link)
    await serve(lease=1.2)
    link = worker._parts.keeper._wire._link
    assert link is not None
    worker._parts.keeper._own_loop.call_soon_threadsafe(link._transport.pause_reading)
    assert await result(job) == 1
    assert await redis.get(f"runs:{job.job_id}") == b"1"


async def test_leases_are_kept_where_redis_takes_no_new_connections(redis: ArqRedis, serve: MakeWorker) -> None:
    """Theirs is there before the first lease is."""
    worker = await serve(lease=0.9)
    await eventually(lambda: worker._parts.keeper._wire._link)
    before = (await redis.config_get("maxclients"))["maxclients"]
    await redis.config_set("maxclients", 1)
    try:
        assert await result(await enqueue(redis, "counted", 3)) == 1
    finally:
        await redis.config_set("maxclients", before)


async def test_a_stop_does_not_wait_for_threads_of_jobs(redis: ArqRedis, serve: MakeWorker) -> None:
    """They may fill the loop's executor."""

    async def threads(ctx: dict[Any, Any]) -> None:
        await asyncio.to_thread(over.wait, 20)

    over = threading.Event()
    worker = await serve(functions=[func(threads, name="threads")], max_jobs=50)
    jobs = (os.cpu_count() or 1) + 4
    for _ in range(jobs):
        await enqueue(redis, "threads")
    await eventually(lambda: len(worker.tasks) == jobs)
    try:
        async with asyncio.timeout(8):
            await worker._stop(worker._parts)
    finally:
        over.set()


async def test_a_job_past_all_limits_is_begun_elsewhere(redis: ArqRedis, serve: MakeWorker) -> None:
    """It does not end, though it was told to long ago. Its worker no longer keeps it, nor runs it twice at a time."""
    worker = await serve(lease=0.6)
    hung = await enqueue(redis, "counted", 60)
    await eventually(lambda: redis.exists(f"runs:{hung.job_id}"))
    worker._parts.runner.runs.get(hung.job_id).ends_by = 0
    await asyncio.sleep(2.5)
    assert list(worker.tasks) == [hung.job_id]
    assert await redis.get(f"runs:{hung.job_id}") == b"1"
    assert await result(await enqueue(redis, "echo", 1)) == 1
    other = await serve(lease=0.6)
    await eventually(lambda: hung.job_id in other.tasks, within_s=5)
    assert await redis.get(f"runs:{hung.job_id}") == b"2"


async def _counts(redis: ArqRedis, key: str, expected: int) -> bool:
    return bool(await redis.zcard(key) == expected)


# -- ends --------------------------------------------------------------------------------------------------------


async def test_every_end_without_a_success_leaves_a_letter(redis: ArqRedis, serve: MakeWorker) -> None:
    await redis.set(keys.paused(QUEUE), 1)
    await serve(functions=[echo, fails, func(slow, timeout=0.2)], max_tries=1)
    gone, junk = await enqueue(redis, "echo"), await enqueue(redis, "echo")
    await redis.delete(keys.JOB + gone.job_id)
    await redis.set(keys.JOB + junk.job_id, b"no pickle")
    jobs = {
        "failed": await enqueue(redis, "fails"),
        "timeout": await enqueue(redis, "slow", 5),
        "unknown function": await enqueue(redis, "nothing", 1, x=2),
        "tries exhausted": await enqueue(redis, "echo", _job_try=9),
        "expired": gone,
        "undecodable": junk,
    }
    told = {  # function, tries, error, and a line of the traceback
        "failed": ("fails", 1, "KeyError('the original error')", 'raise KeyError("the original error")'),
        "timeout": ("slow", 1, "TimeoutError('not done in 0.2s')", "await asyncio.sleep(seconds)"),
        "unknown function": ("nothing", 1, "JobExecutionFailed(\"function 'nothing' not found\")", "not found"),
        "tries exhausted": ("echo", 8, "JobExecutionFailed('max 1 retries exceeded')", "max 1 retries exceeded"),
        "expired": ("<unknown>", 1, "JobExecutionFailed('job expired')", "job expired"),
        "undecodable": ("<unknown>", 1, 'DeserializationError("unable to deserialize job: ', "UnpicklingError"),
    }
    payloads = [await redis.get(keys.JOB + job.job_id) for job in jobs.values()]
    await redis.delete(keys.paused(QUEUE))
    await eventually(lambda: _counts(redis, keys.dead(QUEUE), len(jobs)))
    letters = {
        letter["id"]: letter for letter in await admin.dead_letters(redis, QUEUE, await admin.dead_ids(redis, QUEUE))
    }
    for (reason, job), payload in zip(jobs.items(), payloads, strict=True):
        letter = letters.pop(job.job_id)
        function, tries, error, line = told[reason]
        assert (letter["reason"], letter["function"], letter["tries"]) == (reason, function, tries)
        assert letter["payload"] == (payload or b"")
        assert letter["error"].startswith(error)
        assert line in letter["traceback"]
    with pytest.raises(KeyError, match="the original error"):
        await result(jobs["failed"])
    with pytest.raises(TimeoutError):
        await result(jobs["timeout"])
    assert await redis.exists(*(prefix + j.job_id for prefix in (keys.JOB, keys.RETRY) for j in jobs.values())) == 0


async def test_a_try_that_would_come_after_the_payload_has_expired_is_the_last(
    redis: ArqRedis, serve: MakeWorker
) -> None:
    """By then nobody would know what the job was."""
    await serve(functions=[func(again, name="again")])
    job = await enqueue(redis, "again", _expires=60)
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await result(job)
    (letter,) = await admin.dead_letters(redis, QUEUE, await admin.dead_ids(redis, QUEUE))
    assert (letter["reason"], letter["function"]) == ("expired", "again")
    assert letter["payload"]


async def again(ctx: dict[Any, Any]) -> None:
    raise Retry(defer=3600)


async def test_a_dead_letter_runs_again_with_all_its_tries(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(functions=[func(fails, name="flaky")], max_tries=2, backoff=Backoff(0.01, 0.01))
    job = await enqueue(redis, "flaky")
    await eventually(lambda: _counts(redis, keys.dead(QUEUE), 1))
    worker.functions["flaky"] = func(echo, name="flaky")
    assert await admin.revive(redis, QUEUE, [job.job_id, "nobody"]) == [job.job_id]
    assert await result(job) is None
    info = await job.result_info()
    assert info is not None
    assert (info.success, info.job_try) == (True, 1)
    assert await admin.dead_ids(redis, QUEUE) == []


async def test_a_letter_whose_id_is_in_use_again_stays(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve(max_tries=1)
    job = await enqueue(redis, "fails")
    await eventually(lambda: _counts(redis, keys.dead(QUEUE), 1))
    await redis.delete(keys.RESULT + job.job_id)
    worker.allow_pick_jobs = False
    await enqueue(redis, "echo", _job_id=job.job_id)
    assert await admin.revive(redis, QUEUE, [job.job_id]) == []
    assert await admin.discard(redis, QUEUE, [job.job_id]) == 1
    assert await admin.dead_ids(redis, QUEUE) == []


@pytest.mark.parametrize("bound", [{"MOST_DEAD": 2}, {"MOST_DEAD_BYTES": 9000}], ids=["letters", "bytes"])
async def test_of_dead_letters_the_latest_stay(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch, bound: dict[str, int]
) -> None:
    for name, most in bound.items():
        monkeypatch.setattr(scripts, name, most)
    await serve(functions=[func(tells, name="tells")], max_tries=1)
    for job_id in ("first", "second", "third", "fourth"):
        with pytest.raises(ValueError, match="xxx"):
            await result(await enqueue(redis, "tells", "x" * 1000, _job_id=job_id))
    assert await admin.dead_ids(redis, QUEUE) == ["fourth", "third"]
    assert await redis.hlen(keys.letters(QUEUE)) == 2 * 2 + 1
    monkeypatch.setattr(scripts, "MOST_DEAD_BYTES", 1000)
    with pytest.raises(ValueError, match="xxx"):
        await result(await enqueue(redis, "tells", "x" * 1000, _job_id="fifth"))
    assert await admin.dead_ids(redis, QUEUE) == ["fifth"], "the latest stays, whatever it has"


async def tells(ctx: dict[Any, Any], what: str) -> None:
    raise ValueError(what)


async def test_after_job_end_runs_when_the_result_is_there(redis: ArqRedis, serve: MakeWorker) -> None:
    seen = []

    async def after(ctx: dict[Any, Any]) -> None:
        seen.append(await Job(ctx["job_id"], redis, QUEUE).result_info())
        raise RuntimeError("a hook must not matter")

    await serve(after_job_end=after)
    job = await enqueue(redis, "echo", 7)
    assert await result(job) == 7
    await eventually(lambda: seen)
    assert seen[0].result == 7


async def test_an_old_abort_does_not_hit_the_next_job_of_that_id(redis: ArqRedis, serve: MakeWorker) -> None:
    await redis.zadd(keys.ABORT, {"again": int(time.time() * 1000) - 5000})
    await serve()
    assert await result(await enqueue(redis, "echo", 1, _job_id="again")) == 1


async def test_no_time_limit(redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a job runs for longer than it would be waited for if its worker were gone."""
    monkeypatch.setattr("aegis_worker.worker.worker.NO_TIMEOUT_S", 0.5)
    monkeypatch.setattr("aegis_worker.worker.worker.CLEANUP_MARGIN_S", -10)  # arq adds as much
    for _ in range(2):
        await serve(job_timeout=None, lease=0.6, functions=[counted, func(slow, timeout=0.1)])
    job = await enqueue(redis, "counted", 2)
    with pytest.raises(TimeoutError, match=r"not done in 0\.1s"):
        await result(await enqueue(redis, "slow", 5))
    assert await result(job) == 1
    assert await redis.get(f"runs:{job.job_id}") == b"1"


@asynccontextmanager
async def full(redis: ArqRedis) -> AsyncIterator[list[Job]]:
    """Jobs of a queue that is paused, and no memory for anything."""
    await redis.set(keys.paused(QUEUE), 1)
    jobs = [await enqueue(redis, "echo", n) for n in range(50)]
    before = (await redis.config_get("maxmemory"))["maxmemory"]
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await enqueue(redis, "echo")
        yield jobs
    finally:
        await redis.config_set("maxmemory", before)


@pytest.mark.parametrize("lost", [False, True], ids=["connected", "connections lost"])
async def test_a_full_redis_is_drained(redis: ArqRedis, serve: MakeWorker, lost: bool) -> None:
    """Producers are refused, workers are not: what they finish makes room."""
    worker = await serve()
    async with full(redis) as jobs:
        if lost:
            await redis.client_pause(1000, all=False)  # so that claims are under way
            worker._poll_now(worker._parts)
            await asyncio.sleep(0.1)
            await redis.client_kill_filter(_type="normal", skipme=True)
            await eventually(lambda: worker._failures)
            await redis.client_unpause()
        await redis.delete(keys.paused(QUEUE))
        await eventually(lambda: _counts(redis, QUEUE, 0))
    assert [await result(job) for job in jobs] == list(range(50))


async def test_a_worker_that_starts_while_redis_is_full_drains_it(
    redis: ArqRedis, redis_server: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cron jobs have to wait, and nothing else."""
    beats: list[float] = []
    worker = Worker(
        [echo],
        cron_jobs=[cron(echo, name="waits", run_at_startup=True)],
        queue_name=QUEUE,
        redis_settings=redis_server,
        replica="late",
        handle_signals=False,
        on_beat=lambda: beats.append(monotonic()),
    )
    async with full(redis) as jobs:
        task = asyncio.create_task(worker.async_run())
        await eventually(lambda: len(beats) > 1)
        await redis.delete(keys.paused(QUEUE))
        await eventually(lambda: _counts(redis, QUEUE, 0))
        assert [replica["state"] for replica in await replicas.read(redis, QUEUE)] == ["running"]
        assert caplog.text.count("health records, aborts and cron jobs wait") == 1
        assert worker.jobs_complete == 50
    # Not before: it takes a transaction, of which a full Redis 7 refuses even what reads.
    assert [await result(job) for job in jobs] == list(range(50))
    await eventually(lambda: worker.jobs_complete == 51 and worker._parts.listener.proved)
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_a_redis_that_refuses_writes_is_waited_for(redis: ArqRedis, serve: MakeWorker) -> None:
    """As it does where it lacks replicas, or cannot save to its disk."""
    beats: list[float] = []
    worker = await serve(on_beat=lambda: beats.append(monotonic()), lease=0.9)
    job = await enqueue(redis, "counted", 0.3)
    await eventually(lambda: worker.tasks)
    await redis.config_set("min-replicas-to-write", 1)
    try:
        await eventually(lambda: not worker.tasks)
        await eventually(lambda: worker._failures > 1)
        seen = len(beats)
        await asyncio.sleep(1.5)
        assert len(beats) == seen, "the health check sees it"
        assert await job.result_info() is None
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    assert await result(job) == 1
    assert (await job.result_info()).job_try == 1  # type: ignore[union-attr]
    assert await result(await enqueue(redis, "echo", "after")) == "after"


async def test_who_was_busy_all_through_an_outage_lets_others_renew_first(redis: ArqRedis, serve: MakeWorker) -> None:
    """It did not look at its queue, so it has not noticed by that, and the jobs of others have lapsed leases."""
    ends = asyncio.Event()

    async def busy(ctx: dict[Any, Any]) -> None:
        await ends.wait()

    workers = [await serve(functions=[func(busy, name="busy"), counted], max_jobs=1, lease=0.9) for _ in range(2)]
    held = await enqueue(redis, "busy")
    await eventually(lambda: any(worker.tasks for worker in workers))
    other = next(worker for worker in workers if not worker.tasks)
    job = await enqueue(redis, "counted", 0.3)
    await eventually(lambda: redis.exists(f"runs:{job.job_id}"))
    await redis.config_set("min-replicas-to-write", 1)
    try:
        await eventually(lambda: not other.tasks)
        await asyncio.sleep(2)
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    ends.set()
    assert await result(job) == 1
    assert await result(held) is None
    assert await redis.get(f"runs:{job.job_id}") == b"1"


async def test_a_payload_that_cannot_be_read_harms_no_other_job(redis: ArqRedis, serve: MakeWorker) -> None:
    payload = serialize_job("echo", (1,), {}, None, 0)
    await redis.set(keys.JOB + "poison", payload[:-3])
    await redis.zadd(QUEUE, {"poison": 0})
    await serve()
    assert await result(await enqueue(redis, "echo", 2)) == 2
    with pytest.raises(Exception, match="unable to deserialize job"):
        await result(Job("poison", redis, QUEUE))


async def test_an_unknown_function_fails_as_in_arq(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve()
    with pytest.raises(JobExecutionFailed, match="function 'nothing' not found"):
        await result(await enqueue(redis, "nothing"))


async def test_a_hook_that_does_not_end_keeps_no_result_back(redis: ArqRedis, serve: MakeWorker) -> None:
    begun = asyncio.Event()

    async def hangs(ctx: dict[Any, Any]) -> None:
        begun.set()
        await asyncio.sleep(60)

    worker = await serve(on_job_end=hangs)
    job = await enqueue(redis, "echo", 1)
    await begun.wait()
    worker.handle_sig(signal.SIGTERM)
    await worker.close()
    info = await job.result_info()
    assert info is not None
    assert info.result == 1
