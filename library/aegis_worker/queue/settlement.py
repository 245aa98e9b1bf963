"""The four ways in which a claim ends, each with the data that ``settle.lua`` needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar


@dataclass(slots=True)
class Lease:
    """The right to run a job and to store its end."""

    job_id: str
    token: str  #: of its claim; or of a later claim, if the lease lapsed and the same worker claimed the job again
    tried: bool = field(default=False, compare=False)  #: Redis may have a count of tries, to delete at the end


@dataclass(slots=True)
class Completed:
    """The job has ended, and leaves no dead letter."""

    lease: Lease
    result: bytes = b""  #: ``b""`` to keep none
    keep_ms: int | None = None  #: how long the result is kept; None: forever
    mark_ms: int = 0  #: how long the job's mark stays: for a cron job, so that no late replica runs it again

    @property
    def size(self) -> int:
        return len(self.result)


@dataclass(slots=True)
class Died:
    """The job has ended without success, and leaves a dead letter."""

    lease: Lease
    result: bytes  #: ``b""`` to keep none
    keep_ms: int | None  #: how long the result is kept; None: forever
    letter: str  #: the dead letter without the payload, JSON
    payload: bytes  #: ``b""`` if it has expired

    @property
    def size(self) -> int:
        return len(self.result) + len(self.payload)


@dataclass(slots=True)
class Retried:
    """The job goes back to the queue and is due after a wait."""

    lease: Lease
    wait_ms: int
    tries: int = 0  #: tries that are over; 0 if this try does not count
    raised: str = ""  #: the error of this try, for the case that no later try reports one
    size: ClassVar[int] = 0


@dataclass(slots=True)
class Returned:
    """The job goes back to its place in the queue, and the try does not count."""

    lease: Lease
    due_ms: int
    size: ClassVar[int] = 0


Settlement = Completed | Died | Retried | Returned  #: ``size`` is how many bytes of results and payloads it carries


class Reply(IntEnum):
    """The reply of ``settle.lua`` for a claim."""

    DONE = 1
    OVER = 0  #: this worker no longer had the lease
    LOST = -1  #: this worker no longer had the lease, and another worker has the job
    EXPIRED = -2  #: this worker has the lease, but the job cannot go back, because its payload has expired
