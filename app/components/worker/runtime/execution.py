"""One try of one job: from the claim to what is to become of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from arq.jobs import Deserializer, deserialize_job_raw
from arq.worker import JobExecutionFailed, Retry, RetryJob

from .retry import Backoff


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was claimed, as the claim script returns it."""

    job_id: str
    due_ms: int
    tries: int  #: this one included
    aborted: bool  #: its abort was asked for before it started
    payload: bytes | None  #: None where it has expired


@dataclass(slots=True)
class Job:
    """A claimed job's payload; the defaults stand where it cannot be read."""

    function: str = "<unknown>"
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tries: int = 1
    enqueued_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The job is over: its result, or the exception that ended it."""

    success: bool
    result: Any


@dataclass(frozen=True, slots=True)
class Again:
    """The job goes back to its queue."""

    wait_s: float = 0
    counts: bool = True  #: False: the try is taken back, since it was not the job's fault that it ended


def read(claim: Claim, deserializer: Deserializer | None) -> Job:
    """Decode a claim's payload. Raises ``JobExecutionFailed`` where it has expired, ``DeserializationError``."""
    if claim.payload is None:
        raise JobExecutionFailed("job expired")
    function, args, kwargs, first_try, enqueued_ms = deserialize_job_raw(claim.payload, deserializer=deserializer)
    return Job(function, args, kwargs, max(claim.tries, first_try or 0), enqueued_ms)


async def attempt(task: asyncio.Task[Any], timeout_s: float | None) -> Ended | BaseException:
    """Wait for the task that runs a job; return its result, or what it raised."""
    try:
        return Ended(True, await asyncio.wait_for(task, timeout_s))
    except (Exception, asyncio.CancelledError) as error:
        return error


def decide(
    error: BaseException, tries: int, max_tries: int, backoff: Backoff | None, *, retry_jobs: bool = True
) -> Ended | Again:
    """Say what is to become of a job whose try ended with ``error``.

    ``arq.Retry`` asks for another try at a time of its own; any other exception is tried again where the queue has
    a ``backoff``; cancellation that nobody asked for, and ``RetryJob``, at once. The last try's own error is kept.
    """
    wanted = isinstance(error, Retry | RetryJob | asyncio.CancelledError)
    if not retry_jobs or not (wanted or backoff):
        return Ended(False, error)
    if tries >= max_tries:
        exhausted = JobExecutionFailed(f"max {max_tries} retries exceeded")
        return Ended(False, exhausted if isinstance(error, Retry | RetryJob) else error)
    if isinstance(error, Retry):
        return Again((error.defer_score or 0) / 1000)
    return Again(0 if wanted or backoff is None else backoff.delay(tries))
