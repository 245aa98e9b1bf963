"""Replicas of different versions on one queue, as while a new version is rolled out."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from arq import cron, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import JobExecutionFailed
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from aegis_worker import NewJob, enqueue_many
from aegis_worker.queue import admin, keys, replicas
from aegis_worker.queue.scripts import Claims, Scripts
from tests.conftest import ROOT, eventually
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, result, slow

OLD, NEW = ("both", "old"), ("both", "new")

Roll = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(redis: ArqRedis, redis_server: RedisSettings) -> AsyncIterator[Roll]:
    """Starts a process that knows these functions, and waits until it is in the registry."""
    processes: list[Process] = []

    async def one(replica: str, functions: tuple[str, ...]) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.version", str(redis_server.port), replica, *functions),
            cwd=ROOT,
            stdin=PIPE,
        )
        processes.append(process)
        assert process.stdin
        process.stdin.write(f"{redis_server.password}\n".encode())
        await eventually(lambda: redis.exists(keys.health(QUEUE, replica)))
        return process

    yield one
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def stop(process: Process) -> None:
    process.terminate()
    async with asyncio.timeout(10):
        assert await process.wait() == 0


async def enqueue_all(redis: ArqRedis, functions: tuple[str, ...], count: int) -> list[Job]:
    """So many jobs of each function, in turn."""
    jobs = await enqueue_many(
        redis, [NewJob(name, (0.01,)) for _ in range(count) for name in functions], queue_name=QUEUE
    )
    return [job for job in jobs if job]


async def unknown(job: Job) -> None:
    with pytest.raises(JobExecutionFailed, match="not found"):
        await result(job)


async def all_done(redis: ArqRedis, jobs: list[Job]) -> bool:
    return bool(await redis.exists(*(keys.RESULT + job.job_id for job in jobs)) == len(jobs))


async def letters(redis: ArqRedis) -> list[dict[str, Any]]:
    return await admin.dead_letters(redis, QUEUE, await admin.dead_ids(redis, QUEUE))


async def test_each_job_runs_once_where_it_is_known_from_the_first_new_replica_to_the_last_old_one(
    redis: ArqRedis, start: Roll
) -> None:
    old = await asyncio.gather(start("old1", OLD), start("old2", OLD))
    jobs = await enqueue_all(redis, OLD, 100)
    new = []
    for n in (1, 2, 3):
        new.append(await start(f"new{n}", NEW))
        jobs += await enqueue_all(redis, ("old", "new", "both"), 50)
    await stop(old[0])
    jobs += await enqueue_all(redis, ("old", "new", "both"), 50)
    await eventually(lambda: all_done(redis, jobs), within_s=20)
    await stop(old[1])

    infos = [await job.result_info() for job in jobs]
    for info in infos:
        assert info is not None
        ran = [replica.decode() for replica in await redis.lrange(f"runs:{info.job_id}", 0, -1)]
        assert (info.success, info.job_try, ran) == (True, 1, [info.result])
        assert info.function in (OLD if info.result.startswith("old") else NEW)
    assert await letters(redis) == []

    job = (await enqueue_all(redis, ("old",), 1))[0]
    await unknown(job)
    (letter,) = await letters(redis)
    assert (letter["function"], letter["reason"], letter["tries"]) == ("old", "unknown function", 1)
    assert letter["payload"]
    await start("old3", OLD)
    assert await admin.revive(redis, QUEUE, [job.job_id]) == [job.job_id]
    assert await result(job) == "old3"
    await asyncio.gather(*map(stop, new))


async def elsewhere(redis: ArqRedis, *functions: str) -> None:
    """Write the record of a replica that knows these functions, and claims nothing for a minute."""
    state = {"state": "running", "functions": functions}
    await replicas.record(redis, QUEUE, "elsewhere", state, interval_s=20)


async def test_a_backlog_of_unknown_jobs_keeps_nobody_busy(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: Any) -> Claims:
        claims = await whole(self, *asked)
        looks.append(len(claims.jobs))
        return claims

    await serve()
    await elsewhere(redis, "theirs")
    jobs = [NewJob("theirs")] * 500
    await enqueue_many(redis, jobs, queue_name=QUEUE)
    monkeypatch.setattr(Scripts, "claim", claim)
    await asyncio.sleep(1.5)
    assert sum(looks) <= 500 + 1.5 * 200 + 50, "each once, and then some 200 a second"
    assert len(looks) < 250
    known = await enqueue(redis, "echo", "quick")
    assert await result(known, within_s=1) == "quick"
    assert await redis.zcard(QUEUE) == 500
    assert not [key async for key in redis.scan_iter(keys.RETRY + "*")]


async def test_only_jobs_that_are_unknown_cost_a_look_at_the_registry(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    whole = replicas.known

    async def known(redis: Redis, queue_name: str) -> frozenset[str]:
        nonlocal reads
        reads += 1
        return await whole(redis, queue_name)

    monkeypatch.setattr(replicas, "known", known)
    await serve()
    await asyncio.gather(*[result(await enqueue(redis, "echo", n)) for n in range(20)])
    assert reads == 0
    jobs = await enqueue_many(redis, [NewJob("nobody")] * 100, queue_name=QUEUE)
    await asyncio.gather(*(unknown(job) for job in jobs if job))
    assert 1 <= reads <= 100 / 10 * 3, "ten slots, so that ten jobs share one"


async def test_a_function_that_somebody_has_just_learnt_is_nowhere_a_dead_letter(
    redis: ArqRedis, serve: MakeWorker
) -> None:
    """What was looked up a moment before, when nobody knew it, does not count."""
    for _ in range(3):
        await serve()
    await unknown(await enqueue(redis, "learnt"))
    await serve(functions=[func(echo, name="learnt")])
    jobs = [await enqueue(redis, "learnt", n) for n in range(30)]
    assert [await result(job) for job in jobs] == list(range(30))


async def test_a_replica_that_starts_has_its_record_before_it_claims_and_not_before_it_can(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[bool] = []
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: Any) -> Claims:
        listed.append("learnt" in await replicas.known(redis, QUEUE))
        return await whole(self, *asked)

    async def on_startup(ctx: dict[Any, Any]) -> None:
        listed.append("learnt" in await replicas.known(redis, QUEUE))

    monkeypatch.setattr(Scripts, "claim", claim)
    await serve(functions=[func(echo, name="learnt")], on_startup=on_startup)
    assert listed[:2] == [False, True]


async def test_a_replica_that_drains_is_not_relied_on(redis: ArqRedis, serve: MakeWorker) -> None:
    draining = await serve(functions=[slow], health_check_interval=60, job_completion_wait=5)
    running = await enqueue(redis, "slow", 1)
    await eventually(lambda: draining.tasks)
    await serve(functions=[echo])
    draining.handle_sig(signal.SIGTERM)
    await eventually(lambda: said(redis, "draining"), within_s=0.4)
    await unknown(await enqueue(redis, "slow", 0))
    assert await result(running) == "slept"


async def said(redis: ArqRedis, state: str) -> bool:
    return any(replica.get("state") == state for replica in await replicas.read(redis, QUEUE))


async def test_while_the_registry_cannot_be_read_unknown_jobs_wait(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    whole = replicas.known

    async def known(redis: Redis, queue_name: str) -> frozenset[str]:
        if len(refused) < 3:
            refused.append(1)
            raise ConnectionError("away")
        return await whole(redis, queue_name)

    monkeypatch.setattr(replicas, "known", known)
    await serve()
    await unknown(await enqueue(redis, "nobody"))
    assert len(refused) == 3


async def test_after_an_outage_others_have_time_to_write_their_records_anew(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows = await serve(functions=[slow], max_jobs=1, health_check_interval=60)
    await enqueue(redis, "slow", 1)
    await eventually(lambda: knows.tasks)
    worker = await serve(functions=[echo])
    whole = Scripts.claim

    async def claim(self: Scripts, *asked: Any) -> Claims:
        monkeypatch.setattr(Scripts, "claim", whole)
        raise ConnectionError("away")

    monkeypatch.setattr(Scripts, "claim", claim)
    worker._poll_now(worker._parts)
    await eventually(lambda: worker._failures)
    await eventually(lambda: not worker._failures)
    await redis.delete(keys.health(QUEUE, knows.replica))
    assert await result(await enqueue(redis, "slow", 0)) == "slept"
    assert await letters(redis) == []


async def test_runs_of_a_cron_job_that_only_one_version_has(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(functions=[echo])
    await serve(functions=[echo])

    async def tick(ctx: dict[Any, Any]) -> None:
        await ctx["redis"].incr("ticks")

    await serve(functions=[], job_completion_wait=1, cron_jobs=[cron(tick, second=set(range(60)))])
    await asyncio.sleep(2.8)
    assert int(await redis.get("ticks") or 0) >= 2
    assert await letters(redis) == []
