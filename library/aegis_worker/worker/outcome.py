"""Decides how a job goes on, by its payload, its tries and the error of its code."""

from __future__ import annotations

import asyncio
import json
import traceback
from dataclasses import dataclass
from time import time
from typing import Any, NamedTuple

from arq.jobs import DeserializationError, Deserializer, deserialize_job_raw
from arq.worker import JobExecutionFailed, Retry, RetryJob

from aegis_worker.queue.policies import Backoff
from aegis_worker.queue.scripts import LATEST_MS, MOST_TRIES, UNREAD_FUNCTION, Claim

RetryOn = type[Exception] | tuple[type[Exception], ...]

MOST_CHARACTERS = 1 << 15  #: of an error, and of the end of its traceback, in a dead letter

#: After so long, a job without a timeout counts as dead, if no worker is left that knows about its lease.
NO_TIMEOUT_S = 86_400


class Job(NamedTuple):
    """A claimed job's payload."""

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tries: int
    enqueued_ms: int


UNREAD = Job(UNREAD_FUNCTION, (), {}, 1, 0)


class Refusal(Exception):
    """A job ends, and is not run. ``error`` becomes its result, and ``reason`` is in its dead letter."""

    def __init__(self, reason: str, error: BaseException) -> None:
        super().__init__(str(error) or reason)
        self.end = Ended(False, error, reason)


class Expired(Refusal):
    """A job is not run, or is not tried again, because the time to live of its payload has passed."""

    def __init__(self, cause: BaseException | None = None) -> None:
        error = JobExecutionFailed("job expired")
        error.__cause__ = cause
        super().__init__("expired", error)


class Exhausted(Refusal):
    """A job is not tried again: all its tries are over, and the last one ended without a report."""

    def __init__(self, max_tries: int, raised: str = "") -> None:
        self.max_tries = max_tries
        super().__init__("tries exhausted", _exceeded(max_tries, raised))


class UnknownFunction(Refusal):
    """A job is not run here. Another replica may know its function."""

    def __init__(self, function: str) -> None:
        super().__init__("unknown function", JobExecutionFailed(f"function {function!r} not found"))


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended. ``result`` is its result or its error, and ``reason`` is for the dead letter."""

    success: bool
    result: Any
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job goes back to its queue."""

    wait_s: float = 0
    counts: bool = True  #: whether the try counts; False if it ended because the worker stops


def read(claim: Claim, deserializer: Deserializer | None) -> Job:
    """Decode the payload of a claim. Raises ``Refusal`` if it has expired, cannot be decoded, or is not a job."""
    if claim.payload is None:
        raise Expired
    try:
        function, args, kwargs, first_try, enqueued_ms = deserialize_job_raw(claim.payload, deserializer=deserializer)
    except DeserializationError as error:
        error.args = (f"{error}: {error.__cause__}",)
        raise Refusal("undecodable", error) from error
    # Also a safe deserializer returns values of any type.
    first_try = 0 if first_try is None else first_try
    if not (
        isinstance(function, str)
        and isinstance(args, tuple | list)
        and isinstance(kwargs, dict)
        and all(isinstance(name, str) for name in kwargs)
        and isinstance(first_try, int)
        and 0 <= first_try < MOST_TRIES
        and isinstance(enqueued_ms, int)
        and 0 <= enqueued_ms < LATEST_MS
    ):
        raise Refusal("undecodable", DeserializationError("payload is not a job"))
    return Job(function, tuple(args), kwargs, max(claim.tries, first_try), enqueued_ms)


def decide(
    error: BaseException,
    tries: int,
    max_tries: int,
    backoff: Backoff | None,
    *,
    retry_on: RetryOn = Exception,
    retry_jobs: bool = True,
) -> Ended | Requeued:
    """Decide how a job goes on whose try raised ``error``.

    - ``arq.Retry`` asks for another try after its own wait.
    - ``RetryJob``, and a cancellation that nobody requested, ask for another try at once.
    - The exceptions in ``retry_on`` are tried again if the queue has a ``backoff``.

    After the last try, the job ends with its error.
    """
    reason = "timeout" if isinstance(error, TimeoutError) else "failed"
    wanted = isinstance(error, Retry | RetryJob | asyncio.CancelledError)
    if not retry_jobs or not (wanted or (backoff and isinstance(error, retry_on))):
        return Ended(False, error, reason)
    if tries >= max_tries:
        return Ended(False, _exhausted(error, max_tries) if wanted else error, reason)
    if isinstance(error, Retry):
        return Requeued((error.defer_score or 0) / 1000)
    return Requeued(0 if wanted or backoff is None else backoff.delay(tries))


def _exhausted(retry: BaseException, max_tries: int) -> JobExecutionFailed:
    """Return arq's error for a last try that asked for another one. It contains the cause of that."""
    error = _exceeded(max_tries, raised_by(retry))
    error.__cause__ = retry
    return error


def _exceeded(max_tries: int, raised: str) -> JobExecutionFailed:
    return JobExecutionFailed(f"max {max_tries} retries exceeded" + (f": {raised}" if raised else ""))


def raised_by(error: BaseException) -> str:
    """Return the error of a try as a short text. If the try only asks for another one, it is the cause of that."""
    if isinstance(error, Retry | RetryJob | asyncio.CancelledError):
        raised = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return f"{described(raised):.500}" if raised else ""
    return f"{described(error):.500}"


def described(error: BaseException) -> str:
    """Return ``repr(error)``, or the name of its class if ``repr`` fails, because it may be the code of any class."""
    try:
        return repr(error)
    except Exception:
        return type(error).__qualname__


def dead_letter(job: Job, error: BaseException, reason: str) -> str:
    """Return the dead letter of a job without its payload, as JSON."""
    letter = {
        "function": job.function,
        "reason": reason,
        "tries": job.tries - (reason == "tries exhausted"),  # the refused try did not begin
        "error": described(error)[:MOST_CHARACTERS],
        "traceback": "".join(traceback.format_exception(error))[-MOST_CHARACTERS:],
        "enqueued_ms": job.enqueued_ms,
        "died_ms": int(time() * 1000),
    }
    return json.dumps(letter)
