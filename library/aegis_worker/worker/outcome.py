"""What becomes of a job: decided by its payload, by its tries, and by what its code has raised."""

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

MOST_TOLD = 1 << 15  #: characters of an error, and of its traceback's end, in a dead letter

#: A job with no time limit is taken for dead after so long when all workers that know better are gone.
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
    """A job is not run, but ends: ``error`` becomes its result, ``reason`` stands in its dead letter."""

    def __init__(self, reason: str, error: BaseException) -> None:
        super().__init__(str(error) or reason)
        self.end = Ended(False, error, reason)


class Expired(Refusal):
    """A job is not run, or not again: its payload's time to live has passed."""

    def __init__(self, cause: BaseException | None = None) -> None:
        error = JobExecutionFailed("job expired")
        error.__cause__ = cause
        super().__init__("expired", error)


class Exhausted(Refusal):
    """A job is not run again: all its tries are over, the last without a word of how it ended."""

    def __init__(self, max_tries: int, raised: str = "") -> None:
        self.max_tries = max_tries
        super().__init__("tries exhausted", _exceeded(max_tries, raised))


class UnknownFunction(Refusal):
    """A job is not run here; another replica may know its function."""

    def __init__(self, function: str) -> None:
        super().__init__("unknown function", JobExecutionFailed(f"function {function!r} not found"))


@dataclass(frozen=True, slots=True)
class Ended:
    """The job is over: its result, or the exception that ended it; ``reason`` is a dead letter's."""

    success: bool
    result: Any
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job goes back to its queue."""

    wait_s: float = 0
    counts: bool = True  #: False: the try is taken back, since it was not the job's fault that it ended


def read(claim: Claim, deserializer: Deserializer | None) -> Job:
    """Decode a claim's payload. Raises ``Refusal`` where it has expired, cannot be decoded, or is no job."""
    if claim.payload is None:
        raise Expired
    try:
        function, args, kwargs, first_try, enqueued_ms = deserialize_job_raw(claim.payload, deserializer=deserializer)
    except DeserializationError as error:
        error.args = (f"{error}: {error.__cause__}",)
        raise Refusal("undecodable", error) from error
    # A deserializer that runs no code still passes on what anybody wrote.
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
        raise Refusal("undecodable", DeserializationError("payload is no job"))
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
    """Say what is to become of a job whose try ended with ``error``.

    ``arq.Retry`` asks for another try at a time of its own; any other of ``retry_on`` is tried again where the
    queue has a ``backoff``; cancellation that nobody asked for, and ``RetryJob``, at once. The last try's own error is
    kept.
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
    """Return arq's error for a last try that asked for another one; it says what was raised before that."""
    error = _exceeded(max_tries, raised_by(retry))
    error.__cause__ = retry
    return error


def _exceeded(max_tries: int, raised: str) -> JobExecutionFailed:
    return JobExecutionFailed(f"max {max_tries} retries exceeded" + (f": {raised}" if raised else ""))


def raised_by(error: BaseException) -> str:
    """Return what went wrong in a try, shortened; of one that only asks for another, what was raised before that."""
    if isinstance(error, Retry | RetryJob | asyncio.CancelledError):
        raised = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return f"{described(raised):.500}" if raised else ""
    return f"{described(error):.500}"


def described(error: BaseException) -> str:
    """Return ``repr(error)``, or its class's name where that fails: it may be anybody's."""
    try:
        return repr(error)
    except Exception:
        return type(error).__qualname__


def dead_letter(job: Job, error: BaseException, reason: str) -> str:
    """Return what is kept of a job's death beside its payload, as JSON."""
    letter = {
        "function": job.function,
        "reason": reason,
        "tries": job.tries - (reason == "tries exhausted"),  # that which was refused is none
        "error": described(error)[:MOST_TOLD],
        "traceback": "".join(traceback.format_exception(error))[-MOST_TOLD:],
        "enqueued_ms": job.enqueued_ms,
        "died_ms": int(time() * 1000),
    }
    return json.dumps(letter)
