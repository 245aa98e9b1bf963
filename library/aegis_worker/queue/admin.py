"""What people and programs ask of jobs and queues: to find, abort and retry a job, to look at a queue, to empty it.

Everything here returns plain data and formats nothing, which is left to the command line, a page or an exporter. A
queue is given by its whole name, such as ``arq:queue:media``. Times in ms are since the epoch. Each function raises
what redis-py raises where Redis does not answer.
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
BATCH = 500  #: jobs in one script or command: Redis does nothing else meanwhile
HEAD = 1000  #: jobs that stock workers run are counted among this many at the head of a queue


class NotFound(LookupError):
    """There is no job of this id, or what there is cannot be read here."""


class Refused(Exception):
    """A job is in no state in which this can be done to it."""


# -- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis has of a job."""

    job_id: str
    status: JobStatus
    queue_name: str
    due_ms: int | None  #: None once it has begun: its score says something else then
    tries: int  #: begun
    definition: JobDef | None  #: a ``JobResult`` once it has ended; None where the payload has expired

    @property
    def result(self) -> JobResult | None:
        return self.definition if isinstance(self.definition, JobResult) else None


async def find(redis: ArqRedis, job_id: str, queue_names: Sequence[str]) -> Found:
    """Look a job up by its result, or else in these queues. Raises ``NotFound``."""
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
    raise NotFound(f"no job {job_id} in {names}, and no result of it is kept")


async def follow(redis: ArqRedis, job_id: str, queue_names: Sequence[str], timeout_s: float) -> Found:
    """Wait until a job has ended, or for as long as ``timeout_s``. Raises ``NotFound``."""
    deadline = monotonic() + timeout_s
    while True:
        found = await find(redis, job_id, queue_names)
        if found.result or monotonic() >= deadline:
            return found
        await asyncio.sleep(POLL_S)


async def abort(redis: ArqRedis, job_id: str, queue_names: Sequence[str], timeout_s: float) -> Found:
    """Ask for a job to be cancelled, whether it waits or runs, and wait for its end. Raises ``NotFound``.

    A worker of the queue cancels it. The result of an aborted job is a ``CancelledError``.
    """
    async with redis.pipeline(transaction=True) as pipe:
        # A mark on a job that has ended would abort the next one with its id. The payload goes when a job ends.
        await pipe.watch(keys.JOB + job_id)
        found = await find(redis, job_id, queue_names)
        if found.result:
            return found
        now = timestamp_ms()
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.zadd(keys.ABORT, {job_id: now})
        if found.status is JobStatus.deferred:
            pipe.zadd(found.queue_name, {job_id: now}, xx=True)  # for a worker to see it now
        try:
            await pipe.execute()
        except WatchError:
            return await find(redis, job_id, queue_names)
    return await follow(redis, job_id, queue_names, timeout_s)


async def retry(redis: ArqRedis, job_id: str, queue_names: Sequence[str]) -> Found:
    """Enqueue a job again that has ended, with its arguments and its id; return how it had ended.

    Raises ``NotFound``, or ``Refused`` where it has not ended, or its result does not say what it was to do.
    """
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch(keys.RESULT + job_id, keys.JOB + job_id)
        found = await find(redis, job_id, queue_names)
        if found.result is None:
            raise Refused(f"job {job_id} is {found.status.value}: only one that has ended can run again")
        if found.result.function == UNREAD_FUNCTION:
            raise Refused(f"job {job_id} had expired, or could not be read: what it was to do is not known")
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
            raise Refused(f"job {job_id} was enqueued by somebody else just now") from None
        return found


def time_of(score: float) -> int:
    """Return a score as ms since the epoch; producers write any, that of a time which Python does not know too."""
    return int(max(0, min(score, LATEST_MS)))


# -- queues ----------------------------------------------------------------------------------------------------------


async def queue_counts(redis: ArqRedis, queue_name: str) -> dict[str, Any]:
    """Return how a queue stands: ``queue`` (its short name), ``depth``, ``due``, ``deferred``, ``running``, ``dead``,
    ``oldest_due_s`` (None where nothing is due) and ``paused``.

    Running jobs are members of the queue too. Here each job is counted once.
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
    # Jobs with a lease stand behind those that are due; a stock worker leaves them where they are.
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
    """Return the jobs at the head of a queue: ``id``, ``function``, ``due_in_s``, ``tries`` and ``state``.

    ``function`` is None where the payload has expired or cannot be read, ``due_in_s`` where the job runs.
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
            "due_in_s": None if mark else (time_of(due) - now) / 1000,  # a running one's score says something else
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
    """Remove up to so many jobs that wait in a queue, deferred ones too, and return how many; those that run go on."""
    script = Script(redis.execute_command, "purge")
    total = 0
    while batch := min(BATCH, most - total):
        removed: int = await script(keys=[queue_name, keys.ABORT], args=[batch])
        total += removed
        if removed < batch:
            break
    return total


async def pause(redis: Redis, queue_name: str) -> None:
    """Have workers start nothing more from a queue."""
    await redis.set(keys.paused(queue_name), 1)


async def resume(redis: Redis, queue_name: str) -> None:
    """Have workers start jobs from a paused queue again."""
    await redis.delete(keys.paused(queue_name))


async def queue_replicas(redis: Redis, queue_name: str) -> list[dict[str, Any]]:
    """Return the state of each replica of a queue, in order of name, as ``replicas.read`` says."""
    return await replicas.read(redis, queue_name)


async def server(redis: Redis) -> dict[str, Any]:
    """Return facts of the server: ``server``, ``version``, ``used_memory`` and ``maxmemory`` (bytes), ``policy`` and
    ``latency_ms``."""
    info = await redis.info("server") | await redis.info("memory")
    asked = perf_counter()
    await redis.ping()
    latency = perf_counter() - asked
    name = info.get("server_name", "redis")  # Valkey has a version of its own beside the one it is compatible with
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
    """Return the ids of a queue's dead letters, the latest first."""
    last = most - 1 if most > 0 else -1
    return [keys.job_id(raw_id) for raw_id in await redis.zrevrange(keys.dead(queue_name), 0, last)]


async def dead_letters(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the dead letters of these ids, less those that are gone.

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
    """Return the arguments in a job's payload. Raises ``DeserializationError`` where it cannot be read."""
    definition = deserialize_job(payload, deserializer=redis.job_deserializer)
    return definition.args, definition.kwargs


async def revive(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[str]:
    """Enqueue dead jobs again, with all their tries; return the ids of those that could be.

    Left out are those whose payload had expired, and those whose id is in use again.
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
    """Delete dead letters; return how many there were."""
    delete = Script(redis.execute_command, "discard")
    of_queue = [keys.dead(queue_name), keys.letters(queue_name)]
    return sum([await delete(of_queue, job_ids[first : first + BATCH]) for first in range(0, len(job_ids), BATCH)])
