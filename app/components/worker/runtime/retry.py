"""When a failing job is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter.

    The wait is drawn evenly from nothing up to ``base`` doubled with each try, so that jobs which failed together
    do not come back together; "Full Jitter" of Marc Brooker, *Exponential Backoff And Jitter*, AWS Architecture
    Blog, 2015.
    """

    base: float  #: seconds, upper end of the wait before the second try
    limit: float  #: seconds, upper end of any wait

    def delay(self, tries: int) -> float:
        """Return the seconds to wait after ``tries`` tries have failed."""
        # The exponent is bounded because 2.0 ** 1024 overflows.
        return random.uniform(0, min(self.limit, self.base * 2.0 ** min(tries - 1, 64)))
