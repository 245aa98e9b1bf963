"""The phases of a worker's life. It never goes back to an earlier one."""

from __future__ import annotations

from enum import IntEnum
from math import inf
from time import monotonic


class Phase(IntEnum):
    """A phase is never entered after a later one. Some are left out, for example if a signal comes before the start."""

    NEW = 0  #: nothing is open
    OPENING = 1  #: it connects, and `startup` runs
    SERVING = 2  #: it claims jobs and runs them
    DRAINING = 3  #: it claims nothing more; running jobs may finish
    CLOSING = 4  #: what still runs goes back to the queue, and `shutdown` runs
    CLOSED = 5


class Life:
    """Which phase a worker is in, and when its drain ends."""

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.drain_ends = inf  #: on the monotonic clock

    def enter(self, phase: Phase) -> None:
        """Enter a phase. Raises ``RuntimeError`` if it is an earlier one."""
        if phase < self.phase:
            raise RuntimeError(f"a worker that is {self.phase.name.lower()} cannot be {phase.name.lower()} again")
        self.phase = phase

    def drain(self, wait_s: float) -> bool:
        """Begin to drain, for at most ``wait_s`` seconds, and return True. A later call ends it and returns False."""
        first = self.phase < Phase.DRAINING
        self.phase = max(self.phase, Phase.DRAINING)
        self.drain_ends = monotonic() + (wait_s if first else 0)
        return first

    @property
    def stopping(self) -> bool:
        """Whether the worker claims no more jobs."""
        return self.phase >= Phase.DRAINING

    @property
    def drained(self) -> bool:
        """Whether the time of the drain is over."""
        return monotonic() >= self.drain_ends
