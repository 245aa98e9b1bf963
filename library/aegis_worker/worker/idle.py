"""Decides what a worker does after a poll. The decision depends only on what the poll has seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

IDLE_POLL_S = 5.0  #: between two polls of a worker that is notified of new jobs
SOON_S = 0.05  #: for jobs that are due so soon the worker itself waits: a claim that waits in Redis takes only one job
BLOCKED_POLL_S = 1.0  #: between two polls while due jobs run in stock workers, or wait for other jobs to end


@dataclass(frozen=True, slots=True)
class Busy:
    """Nothing can be claimed until a job ends, the end of a job is stored, or the rate limit allows more jobs."""

    wait_s: float = IDLE_POLL_S


@dataclass(frozen=True, slots=True)
class Again:
    """Poll at once: more jobs may be due."""

    wait_s: float = 0  #: as the others have one


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before this time has passed, unless the worker is notified."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Park:
    """The same, and meanwhile the next claim waits in Redis, at most for this time."""

    wait_s: float


Next = Busy | Again | Wait | Park


@dataclass(slots=True)
class Seen:
    """What a poll has seen."""

    free: float  #: slots before the claim
    wanted: int  #: jobs that were asked for
    jobs: int  #: that were claimed
    reclaimed: bool = False  #: the lease of the first job had lapsed; the job may run here already, without a new slot
    next_s: float = inf  #: seconds until the next job is due
    blocked: bool = False  #: jobs may be due that cannot be claimed now
    limited: bool = False  #: the rate limit does not allow more jobs now
    began_to_listen: bool = False  #: the worker has just begun to listen: a job may have come before
    notified: bool = False  #: whether new jobs wake this worker, so that it does not have to poll

    @property
    def idle(self) -> bool:
        """Whether the worker had enough slots for all due jobs."""
        return not (self.limited or self.filled) and self.jobs < self.wanted

    @property
    def filled(self) -> bool:
        """Whether the claimed jobs take all slots."""
        return self.jobs == self.free and not self.reclaimed


def after(seen: Seen, poll_s: float) -> Next:
    """Return what to do after a poll.

    :param poll_s: seconds between two polls of a worker that is not notified of new jobs
    """
    if seen.limited:
        return Busy(min(seen.next_s, IDLE_POLL_S))
    if seen.filled:
        return Busy()
    if not seen.idle or seen.began_to_listen:
        return Again()
    wait_s = min(seen.next_s, IDLE_POLL_S if seen.notified else poll_s)
    if seen.blocked:
        wait_s = min(wait_s, BLOCKED_POLL_S)
    return Park(wait_s) if seen.notified and wait_s > SOON_S else Wait(wait_s)
