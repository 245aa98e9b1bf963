"""Policies of a queue that arq lacks: the back-off of failed jobs, and a rate limit."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Self

_PERIODS_S = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter.

    The wait is random, from zero to a limit. The limit is ``base`` before the second try and doubles with each try. So
    jobs that failed together do not come back together. See "Full Jitter" in Marc Brooker, *Exponential Backoff And
    Jitter*, AWS Architecture Blog, 2015.
    """

    base: float  #: seconds, the longest wait before the second try
    limit: float  #: seconds, the longest wait before any try

    def delay(self, tries: int) -> float:
        """Return the seconds to wait after ``tries`` tries have failed."""
        # The exponent is bounded because 2.0 ** 1024 overflows.
        return random.uniform(0, min(self.limit, self.base * 2.0 ** min(tries - 1, 64)))


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``jobs`` jobs begin in any period of ``seconds`` seconds, over all replicas. Each try counts."""

    jobs: int
    seconds: float = 1

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.seconds <= 0:
            raise ValueError(f"a rate limit needs at least one job, and a period longer than 0: {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``10/s``, ``300/m`` or ``5/h``, as Celery writes it. Raises ``ValueError`` for anything else."""
        if not (match := re.fullmatch(r"([1-9][0-9]*)/([smh])", text)):
            raise ValueError(f"a rate limit has the form 10/s, 300/m or 5/h, not {text!r}")
        return cls(int(match[1]), _PERIODS_S[match[2]])
