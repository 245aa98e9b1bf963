"""Administration of jobs and queues: find, abort and retry a job; inspect, empty and pause a queue; dead letters.

All functions return plain data. The command line, for example, formats it. ``queue_name`` is a full name, such as
``arq:queue:media``. Times in ms are since the epoch. Each function raises redis-py's error if Redis does not answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from arq.connections import ArqRedis
from arq.constants import expires_extra_ms
from arq.jobs import (
    DeserializationError,
    JobDef,
    JobResult,
    JobStatus,
    deserialize_job,
    deserialize_result,
    serialize_job,
)
from arq.utils import timestamp_ms
from redis.asyncio import Redis
from redis.exceptions import WatchError

from aegis_worker.queue import keys, replicas
from aegis_worker.queue.scripts import LATEST_MS, UNREAD_FUNCTION, Script, finished_tries

POLL_S = 0.05
BATCH = 500  #: most jobs in one script or command, because Redis does nothing else meanwhile
HEAD = 1000  #: jobs at the head of a queue among which those of stock workers are counted


class NotFound(LookupError):
    """There is no job with this id, or it cannot be read here."""


class Refused(Exception):
    """The state of the job does not allow this."""


# -- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis knows about a job."""

    job_id: str
    status: JobStatus
    queue_name: str
    due_ms: int | None  #: None when it has begun, because then its score has another meaning
    tries: int  #: that have begun
    definition: JobDef | None  #: a ``JobResult`` when it has ended; None if the payload has expired

    @property
    def result(self) -> JobResult | None:
        return self.definition if isinstance(self.definition, JobResult) else None


async def find(redis: ArqRedis, job_id: str, queue_names: Sequence[str]) -> Found:
    """Find a job by its result, or else in these queues. Raises ``NotFound``."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.mget([keys.RESULT + job_id, keys.JOB + job_id, keys.IN_PROGRESS + job_id, keys.RETRY + job_id])
        for name in queue_names:
            pipe.zscore(name, job_id)
            pipe.zscore(keys.leases(name), job_id)
        (ended, payload, mark, count), *scores = await pipe.execute()
    try:
        if ended:
            result = deserialize_result(ended, deserializer=redis.job_deserializer)
            return Found(job_id, JobStatus.complete, result.queue_name, None, result.job_try, result)
        definition = deserialize_job(payload, deserializer=redis.job_deserializer) if payload else None
    except DeserializationError as error:
        raise NotFound(f"job {job_id} cannot be read here: {error.__cause__}") from error
    for name, score, lapses in zip(queue_names, scores[::2], scores[1::2], strict=True):
        if score is not None:
            waits = JobStatus.deferred if score > timestamp_ms() else JobStatus.queued
            status = JobStatus.in_progress if mark else waits
            tries = finished_tries(count) + (lapses is not None)
            return Found(job_id, status, name, None if mark else time_of(score), tries, definition)
    names = ", ".join(map(keys.short_name, queue_names))
    raise NotFound(f"there is no job {job_id} in {names}, and no result of it is kept")


async def follow(redis: ArqRedis, job_id: str, queue_names: Sequence[str], timeout_s: float) -> Found:
    """Wait until a job has ended, at most ``timeout_s`` seconds, and return it. Raises ``NotFound``."""
    deadline = monotonic() + timeout_s
    while True:
        found = await find(redis, job_id, queue_names)
        if found.result or monotonic() >= deadline:
            return found
        await asyncio.sleep(POLL_S)


async def abort(redis: ArqRedis, job_id: str, queue_names: Sequence[str], timeout_s: float) -> Found:
    """Request the abort of a job that waits or runs, and wait for its end for at most ``timeout_s`` seconds.

    A worker of the queue aborts it. The result of an aborted job is a ``CancelledError``. Raises ``NotFound``.
    """
    async with redis.pipeline(transaction=True) as pipe:
        # A request after the end of the job would abort the next job with this id. The payload is deleted at the end.
        await pipe.watch(keys.JOB + job_id)
        found = await find(redis, job_id, queue_names)
        if found.result:
            return found
        now = timestamp_ms()
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.zadd(keys.ABORT, {job_id: now})
        if found.status is JobStatus.deferred:
            pipe.zadd(found.queue_name, {job_id: now}, xx=True)  # due now, so that a worker claims and aborts it
        try:
            await pipe.execute()
        except WatchError:
            return await find(redis, job_id, queue_names)
    return await follow(redis, job_id, queue_names, timeout_s)


async def retry(redis: ArqRedis, job_id: str, queue_names: Sequence[str]) -> Found:
    """Enqueue a job again that has ended, with the same arguments and id. Return its state before.

    Raises ``NotFound``, or ``Refused`` if the job has not ended, or its task is not known.
    """
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch(keys.RESULT + job_id, keys.JOB + job_id)
        found = await find(redis, job_id, queue_names)
        if found.result is None:
            raise Refused(f"job {job_id} is {found.status.value}: only a job that has ended can run again")
        if found.result.function == UNREAD_FUNCTION:
            raise Refused(f"job {job_id} had expired or could not be read, so its task is not known")
        now = timestamp_ms()
        what = (found.result.function, found.result.args, found.result.kwargs, None, now)
        payload = serialize_job(*what, serializer=redis.job_serializer)
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.delete(*(prefix + job_id for prefix in (keys.RESULT, keys.RETRY, keys.RAISED)))
        pipe.zrem(keys.ABORT, job_id)
        pipe.psetex(keys.JOB + job_id, redis.expires_extra_ms, payload)
        pipe.zadd(found.queue_name, {job_id: now})
        try:
            await pipe.execute()
        except WatchError:
            raise Refused(f"somebody else has just enqueued job {job_id}") from None
        return found


def time_of(score: float) -> int:
    """Return a score as ms since the epoch, limited to times that Python knows: producers may write any number."""
    return int(max(0, min(score, LATEST_MS)))


# -- queues ----------------------------------------------------------------------------------------------------------


async def queue_counts(redis: ArqRedis, queue_name: str) -> dict[str, Any]:
    """Return the counts of a queue.

    The keys are ``queue`` (its short name), ``depth``, ``due``, ``deferred``, ``running``, ``dead``, ``oldest_due_s``
    (seconds since the oldest due job became due, None if no job is due) and ``paused``. In Redis, running jobs are in
    the queue, too. Here each job is counted once.
    """
    now = timestamp_ms()
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zcard(queue_name)
        pipe.zcount(queue_name, "-inf", now)
        pipe.zrangebyscore(queue_name, "-inf", now, 0, HEAD, withscores=True)
        pipe.zcard(keys.leases(queue_name))
        pipe.zcount(keys.leases(queue_name), "-inf", now)
        pipe.zcard(keys.dead(queue_name))
        pipe.exists(keys.paused(queue_name))
        depth, past, head, leased, lapsed, dead, paused = await pipe.execute()
    # Jobs with a lease are after the due jobs. A stock worker does not move the jobs that it runs.
    marks = await redis.mget([keys.IN_PROGRESS.encode() + raw_id for raw_id, _ in head]) if head else []
    waiting = [time_of(due) for (_, due), mark in zip(head, marks, strict=True) if mark is None]
    in_stock_workers = len(head) - len(waiting)
    return {
        "queue": keys.short_name(queue_name),
        "depth": depth,
        "due": past - in_stock_workers + lapsed,
        "deferred": max(0, depth - past - leased),
        "running": in_stock_workers + leased - lapsed,
        "oldest_due_s": (now - waiting[0]) / 1000 if waiting else None,
        "dead": dead,
        "paused": bool(paused),
    }


async def next_jobs(redis: ArqRedis, queue_name: str, most: int = 20) -> list[dict[str, Any]]:
    """Return at most ``most`` jobs at the head of a queue.

    Each has ``id``, ``function`` (None if the payload has expired or cannot be read), ``due_in_s`` (None if the job
    runs), ``tries`` and ``state``.
    """
    head = await redis.zrange(queue_name, 0, most - 1, withscores=True)
    if not head:
        return []
    now = timestamp_ms()
    async with redis.pipeline(transaction=True) as pipe:
        for prefix in (keys.JOB, keys.IN_PROGRESS, keys.RETRY):
            pipe.mget([prefix.encode() + raw_id for raw_id, _ in head])
        pipe.zmscore(keys.leases(queue_name), [raw_id for raw_id, _ in head])
        payloads, marks, tries, leases = await pipe.execute()
    return [
        {
            "id": keys.job_id(raw_id),
            "function": _function(redis, payload),
            "due_in_s": None if mark else (time_of(due) - now) / 1000,  # the score of a running job has another meaning
            "tries": finished_tries(count) + (lapses is not None),
            "state": "running" if mark else "deferred" if due > now else "due",
        }
        for (raw_id, due), payload, mark, count, lapses in zip(head, payloads, marks, tries, leases, strict=True)
    ]


def _function(redis: ArqRedis, payload: bytes | None) -> str | None:
    if payload is None:
        return None
    try:
        return deserialize_job(payload, deserializer=redis.job_deserializer).function
    except DeserializationError:
        return None


async def purge(redis: Redis, queue_name: str, most: int) -> int:
    """Remove at most ``most`` jobs that wait in a queue, also deferred ones. Return how many. Running jobs go on."""
    script = Script(redis.execute_command, "purge")
    total = 0
    while batch := min(BATCH, most - total):
        removed: int = await script(keys=[queue_name, keys.ABORT], args=[batch])
        total += removed
        if removed < batch:
            break
    return total


async def pause(redis: Redis, queue_name: str) -> None:
    """Pause a queue: workers start no more of its jobs."""
    await redis.set(keys.paused(queue_name), 1)


async def resume(redis: Redis, queue_name: str) -> None:
    """Resume a paused queue: workers start its jobs again."""
    await redis.delete(keys.paused(queue_name))


async def queue_replicas(redis: Redis, queue_name: str) -> list[dict[str, Any]]:
    """Return the state of each replica of a queue, sorted by name, as ``replicas.read`` describes it."""
    return await replicas.read(redis, queue_name)


async def server(redis: Redis) -> dict[str, Any]:
    """Return facts about the server.

    The keys are ``server``, ``version``, ``used_memory`` and ``maxmemory`` (bytes), ``policy`` and ``latency_ms``.
    """
    info = await redis.info("server") | await redis.info("memory")
    asked = perf_counter()
    await redis.ping()
    latency = perf_counter() - asked
    name = info.get(
        "server_name", "redis"
    )  # Valkey has its own version, and that of the Redis with which it is compatible
    return {
        "server": name.capitalize(),
        "version": info.get(f"{name}_version", info["redis_version"]),
        "used_memory": info["used_memory"],
        "maxmemory": info["maxmemory"],
        "policy": info["maxmemory_policy"],
        "latency_ms": round(latency * 1000, 1),
    }


# -- dead letters ----------------------------------------------------------------------------------------------------


async def dead_ids(redis: Redis, queue_name: str, most: int = -1) -> list[str]:
    """Return the ids of a queue's dead letters, the latest first: at most ``most``, or all if it is not above 0."""
    last = most - 1 if most > 0 else -1
    return [keys.job_id(raw_id) for raw_id in await redis.zrevrange(keys.dead(queue_name), 0, last)]


async def dead_letters(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the dead letters with these ids. Those that no longer exist are left out.

    Each has ``id``, ``payload`` (bytes), ``function``, ``reason``, ``tries``, ``error``, ``traceback``,
    ``enqueued_ms`` and ``died_ms``.
    """
    if not job_ids:
        return []
    fields = [field for job_id in job_ids for field in (keys.LETTER_FIELD + job_id, keys.PAYLOAD_FIELD + job_id)]
    found = await redis.hmget(keys.letters(queue_name), fields)  # type: ignore[misc]
    return [
        {"id": job_id, **json.loads(letter), "payload": payload}
        for job_id, letter, payload in zip(job_ids, found[::2], found[1::2], strict=True)
        if letter is not None
    ]


def arguments(redis: ArqRedis, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments in a job's payload. Raises ``DeserializationError`` if it cannot be read."""
    definition = deserialize_job(payload, deserializer=redis.job_deserializer)
    return definition.args, definition.kwargs


async def revive(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[str]:
    """Enqueue dead jobs again, with all their tries. Return the ids of those that were enqueued.

    A job is not enqueued if its payload had expired, or if its id is in use again.
    """
    script = Script(redis.execute_command, "revive")
    revived: list[str] = []
    for first in range(0, len(job_ids), BATCH):
        done = await script(
            keys=[queue_name, keys.dead(queue_name), keys.letters(queue_name), keys.ABORT],
            args=[timestamp_ms(), expires_extra_ms, *job_ids[first : first + BATCH]],
        )
        revived += map(keys.job_id, done)
    return revived


async def discard(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> int:
    """Delete dead letters. Return how many were deleted."""
    delete = Script(redis.execute_command, "discard")
    of_queue = [keys.dead(queue_name), keys.letters(queue_name)]
    return sum([await delete(of_queue, job_ids[first : first + BATCH]) for first in range(0, len(job_ids), BATCH)])
