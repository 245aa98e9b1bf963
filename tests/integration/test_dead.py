"""``my-app dead retry``: which letters become jobs again, and what it says where one cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job

from aegis_worker import Backoff
from aegis_worker.queue import admin, keys
from tests.conftest import eventually
from tests.integration.conftest import Cli, MakeWorker

LOAD_TEST = "arq:queue:load_test"  # the command line knows the project's queues alone


@pytest.fixture
async def redis(redis: ArqRedis) -> AsyncIterator[ArqRedis]:
    """Leaves the queue to other tests as it was: some have a worker that stays."""
    yield redis
    await redis.flushall()


async def fails_late(ctx: dict[Any, Any]) -> None:
    await asyncio.sleep(0.4)
    raise ValueError


async def enqueue(redis: ArqRedis, job_id: str, **options: Any) -> Job:
    job = await redis.enqueue_job("fails_late", _job_id=job_id, _queue_name=LOAD_TEST, **options)
    assert job is not None
    return job


async def let_die(redis: ArqRedis, serve: MakeWorker, count: int) -> None:
    """Have a worker run jobs until so many are dead letters, and claim no more."""
    worker = await serve(queue_name=LOAD_TEST, functions=[fails_late], max_tries=2, backoff=Backoff(0.01, 0.01))

    async def died() -> bool:
        return bool(await redis.zcard(keys.dead(LOAD_TEST)) == count)

    await eventually(died)
    worker.allow_pick_jobs = False


async def test_several_are_retried_and_the_others_stay(redis: ArqRedis, serve: MakeWorker, cli: Cli) -> None:
    for job_id in "abc":
        await enqueue(redis, job_id)
    await let_die(redis, serve, 3)
    done = await cli("dead retry a b")
    assert (done.code, done.out, done.err) == (0, "2 jobs are enqueued again\n", "")
    assert await redis.zrange(LOAD_TEST, 0, -1) == [b"a", b"b"]
    assert await redis.exists(*(keys.RETRY + job_id for job_id in "ab")) == 0
    assert await admin.dead_ids(redis, LOAD_TEST) == ["c"]
    (await cli("dead retry c nobody")).refuses("no dead letter nobody in load_test, media, system", code=1)
    assert await admin.dead_ids(redis, LOAD_TEST) == ["c"], "of ids of which one is wrong, none is taken"
    assert (await cli("dead retry --all --json")).data == {"retried": ["c"], "left": []}


async def test_several_are_discarded(redis: ArqRedis, serve: MakeWorker, cli: Cli) -> None:
    for job_id in "abc":
        await enqueue(redis, job_id)
    await let_die(redis, serve, 3)
    assert (await cli("dead discard a b")).code == 0
    assert await admin.dead_ids(redis, LOAD_TEST) == ["c"]


async def test_none_is_retried_beside_a_job_of_its_id_that_runs(redis: ArqRedis, serve: MakeWorker) -> None:
    """Also where that one's payload has expired."""
    await enqueue(redis, "a")
    await let_die(redis, serve, 1)
    await redis.set(keys.IN_PROGRESS + "a", "somebody's token", px=60_000)
    assert await admin.revive(redis, LOAD_TEST, ["a"]) == []
    assert await admin.dead_ids(redis, LOAD_TEST) == ["a"]


@pytest.mark.parametrize("ids", ["early late", "--all"])
async def test_what_expired_is_retried_where_a_worker_had_its_payload(
    redis: ArqRedis, serve: MakeWorker, cli: Cli, ids: str
) -> None:
    """One expired before any worker had it, one while it ran."""
    early = await enqueue(redis, "early")
    await redis.delete(keys.JOB + early.job_id)
    await enqueue(redis, "late", _expires=0.3)
    await let_die(redis, serve, 2)
    letters = await admin.dead_letters(redis, LOAD_TEST, ["early", "late"])
    assert [letter["reason"] for letter in letters] == ["expired", "expired"]
    done = await cli(f"dead retry {ids} --json")
    assert (done.code, done.data) == (1, {"retried": ["late"], "left": ["early"]})
    assert done.err == "1 jobs were not enqueued: the payload had expired, or the id is in use again: early\n"
    assert await admin.dead_ids(redis, LOAD_TEST) == ["early"]
    assert await redis.exists(keys.JOB + "late")
