"""Enqueueing jobs as a stock producer would, in a round trip for many at a time or for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from secrets import token_hex
from types import MappingProxyType
from typing import Any, NamedTuple

from arq.connections import ArqRedis
from arq.jobs import Job, serialize_job
from arq.utils import timestamp_ms, to_ms, to_unix_ms

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import MOST_KEPT_MS, Script
from aegis_worker.redis.wire import Wire

BATCH_JOBS = 500  #: Redis does nothing else meanwhile
BATCH_BYTES = 4 << 20
KEEP_UNIQUE_MS = 86_400_000  #: of a job that runs so long after its payload has expired, the key is free

Fields = tuple[str, bytes, int, int, str]  #: of a job, in the order of ``enqueue.lua``


class NewJob(NamedTuple):
    """A job to be enqueued; the fields are the arguments of ``ArqRedis.enqueue_job``, less the underscore.

    Every field but the first may be left out.
    """

    function: str  #: the name that the worker knows the function by
    args: tuple[Any, ...] = ()  #: the function's arguments, less ``ctx``
    kwargs: Mapping[str, Any] = MappingProxyType({})  #: and those by name
    job_id: str | None = None  #: by default a new one; refused while it waits, runs or its result is kept
    defer_until: datetime | None = None  #: when it is due; one without a time zone is in this machine's
    defer_by: float | timedelta = 0  #: seconds from now until it is due, where there is no ``defer_until``
    #: Seconds from now after which it is not begun any more, nor tried again. By default a day after it is due.
    expires: float | timedelta | None = None
    #: Refused while a job of the queue that has the same key waits or runs, though its id differs.
    unique: str | None = None


async def enqueue_many(redis: ArqRedis, jobs: Iterable[NewJob], *, queue_name: str | None = None) -> list[Job | None]:
    """Enqueue jobs, in one round trip for each batch of 500, or of 4 MiB; each batch is whole or not at all.

    :param redis: its serializer and its default queue are used, as by ``enqueue_job``
    :param jobs: which ones; they are asked for as the batches go
    :param queue_name: the queue's whole name, such as ``arq:queue:media``; by default ``redis.default_queue_name``
    :return: for each its ``Job``, or None where its id or its unique key is in use
    :raise arq.jobs.SerializationError: where arguments cannot be carried or are too large; its cause says what is
        wrong. The batches before that one are enqueued then
    :raise redis.exceptions.RedisError: where Redis refuses a batch, being full say (``OutOfMemoryError``), or cannot be
        reached (``ConnectionError``, ``TimeoutError``), when the batch may have been enqueued
    """
    return await _enqueue(Script(redis.execute_command, "enqueue"), redis, jobs, queue_name)


class Producer:
    """Enqueues jobs over a connection of its own, where others borrow one: for a program that does so all day.

    Make it in the event loop that uses it; any number of tasks of that loop may share it. It connects when it is first
    used, and again after the connection was lost.

    :param redis: how to connect; its serializer and its default queue are used, as by ``enqueue_job``
    """

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._wire = Wire(redis.connection_pool)
        self._script = Script(self._wire.call, "enqueue")

    async def enqueue(self, job: NewJob, *, queue_name: str | None = None) -> Job | None:
        """Enqueue a job, in one round trip.

        :param queue_name: the queue's whole name, such as ``arq:queue:media``; by default the client's default queue
        :return: its ``Job``, or None where its id or its unique key is in use
        :raise arq.jobs.SerializationError: where its arguments cannot be carried or are too large; the cause says what
            is wrong
        :raise redis.exceptions.RedisError: where Redis refuses it, being full say (``OutOfMemoryError``), or cannot be
            reached (``ConnectionError``, ``TimeoutError``), when it may have been enqueued: sent once more with the
            same ``job_id``, it is not there twice
        :raise ValueError: where it has both ``defer_until`` and ``defer_by``
        """
        queue_name = queue_name or self._redis.default_queue_name
        fields = _fields(self._redis, job, queue_name)
        (enqueued,) = await self._script((queue_name,), (keys.bell(queue_name), KEEP_UNIQUE_MS, *fields))
        return Job(fields[0], self._redis, queue_name, self._redis.job_deserializer) if enqueued else None

    async def enqueue_many(self, jobs: Iterable[NewJob], *, queue_name: str | None = None) -> list[Job | None]:
        """Enqueue jobs in batches; what it takes, returns and raises is the function :func:`enqueue_many`'s."""
        return await _enqueue(self._script, self._redis, jobs, queue_name)

    def close(self) -> None:
        """Close the connection, if there is one; what is under way fails with a ``ConnectionError``."""
        self._wire.close()


async def _enqueue(script: Script, redis: ArqRedis, jobs: Iterable[NewJob], queue_name: str | None) -> list[Job | None]:
    queue_name = queue_name or redis.default_queue_name
    done: list[Job | None] = []
    for batch in _batches(redis, jobs, queue_name):
        flat = [field for fields in batch for field in fields]
        flags = await script((queue_name,), (keys.bell(queue_name), KEEP_UNIQUE_MS, *flat))
        done += [
            Job(fields[0], redis, queue_name, redis.job_deserializer) if enqueued else None
            for fields, enqueued in zip(batch, flags, strict=True)
        ]
    return done


def _batches(redis: ArqRedis, jobs: Iterable[NewJob], queue_name: str) -> Iterator[list[Fields]]:
    batch: list[Fields] = []
    size = 0
    for job in jobs:
        fields = _fields(redis, job, queue_name)
        batch.append(fields)
        size += len(fields[1])
        if len(batch) == BATCH_JOBS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fields(redis: ArqRedis, job: NewJob, queue_name: str) -> Fields:
    now_ms = timestamp_ms()
    if job.defer_until and job.defer_by:
        raise ValueError(f"job {job.function}: defer_until and defer_by exclude each other")
    due_ms = to_unix_ms(job.defer_until) if job.defer_until else now_ms + to_ms(job.defer_by)
    keep_ms = to_ms(job.expires) if job.expires else max(0, due_ms - now_ms) + redis.expires_extra_ms
    keep_ms = min(max(1, keep_ms), MOST_KEPT_MS)  # Redis refuses others, in the middle of the batch
    payload = serialize_job(job.function, job.args, dict(job.kwargs), None, now_ms, serializer=redis.job_serializer)
    unique = keys.unique(queue_name, job.unique) if job.unique else ""
    return job.job_id or token_hex(16), payload, due_ms, keep_ms, unique
