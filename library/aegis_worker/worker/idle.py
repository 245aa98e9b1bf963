"""What a worker does after a poll: a pure decision, by what it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

IDLE_POLL_S = 5.0  #: between two polls of a worker that is notified of new jobs
SOON_S = 0.05  #: what is due by then is waited for here, since a claim that waits in Redis takes one job only
BLOCKED_POLL_S = 1.0  #: while jobs are due that stock workers run, or that have to wait for others to end


@dataclass(frozen=True, slots=True)
class Busy:
    """Nothing more can be claimed until a job ends, or its end is stored, or the rate limit allows for more."""

    wait_s: float = IDLE_POLL_S


@dataclass(frozen=True, slots=True)
class Again:
    """Poll at once: more jobs may be due."""

    wait_s: float = 0  #: as the others have one


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due before this time is over, unless the worker is notified."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Park:
    """The same, and the next claim waits in Redis meanwhile, for so long at most."""

    wait_s: float


Next = Busy | Again | Wait | Park


@dataclass(slots=True)
class Seen:
    """What a poll has seen."""

    free: float  #: slots before the claim
    wanted: int  #: jobs that were asked for
    jobs: int  #: that were claimed
    reclaimed: bool = False  #: the first had a lease that lapsed; it may be one that runs here, and took no new slot
    next_s: float = inf  #: until something falls due
    blocked: bool = False  #: jobs may be due that cannot be had now
    limited: bool = False  #: the rate limit keeps jobs back
    began_to_listen: bool = False  #: a job may have come just before
    notified: bool = False  #: whether new jobs wake this worker, so that it need not poll for them

    @property
    def idle(self) -> bool:
        """Whether no more jobs are due than it has slots for."""
        return not (self.limited or self.filled) and self.jobs < self.wanted

    @property
    def filled(self) -> bool:
        """Whether the claim has taken all slots."""
        return self.jobs == self.free and not self.reclaimed


def after(seen: Seen, poll_s: float) -> Next:
    """Return what to do after a poll; ``poll_s`` is between two polls of a worker that is not notified."""
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
