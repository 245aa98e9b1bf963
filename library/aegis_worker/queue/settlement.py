"""How a claim is settled: in four ways, each with what ``settle.lua`` has to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


@dataclass(slots=True)
class Lease:
    """The right to run a job, and to say how it ended."""

    job_id: str
    token: str  #: of the claim that it came of; a later one's where it lapsed and its holder claimed it anew
    tried: bool = field(default=False, compare=False)  #: there may be a count of tries, to delete when the job ends


@dataclass(slots=True)
class Completed:
    """The job is over, and leaves no dead letter."""

    lease: Lease
    result: bytes = b""  #: ``b""`` to keep none
    keep_ms: int | None = None  #: how long the result is kept; None for ever
    mark_ms: int = 0  #: how long its mark as running stays: a cron job's keeps a late replica from running it again


@dataclass(slots=True)
class Died:
    """The job is over without a success, and leaves a dead letter."""

    lease: Lease
    result: bytes  #: ``b""`` to keep none
    keep_ms: int | None  #: how long the result is kept; None for ever
    letter: str  #: what the dead letter says, JSON
    payload: bytes  #: ``b""`` where it has expired


@dataclass(slots=True)
class Retried:
    """The job goes back to the queue and is due after a wait."""

    lease: Lease
    wait_ms: int
    tries: int = 0  #: how many have ended; 0 where this one does not count
    raised: str = ""  #: what this try has raised; a letter says it where the worker dies in the next try


@dataclass(slots=True)
class Returned:
    """The job goes back to its place in the queue, and the try does not count."""

    lease: Lease
    due_ms: int


Settlement = Completed | Died | Retried | Returned


class Reply(IntEnum):
    """What ``settle.lua`` replies for a claim."""

    DONE = 1
    OVER = 0  #: it no longer held the lease
    LOST = -1  #: it no longer held the lease, and another worker has the job
    EXPIRED = -2  #: it still holds the lease: the job cannot go back to the queue, as its payload has expired
