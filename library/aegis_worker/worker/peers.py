"""What other replicas know: while their versions differ, a job that this one cannot run is left to one that can."""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic

from redis.asyncio import Redis

from aegis_worker.queue import replicas
from aegis_worker.queue.scripts import UNAVAILABLE

logger = logging.getLogger(__name__)

GOOD_FOR_S = 1.0
LEFT_FOR_S = 0.2  #: a job that is left to others is due after so long, and the next one a turn later,
TURN_S = 0.005  #: so that a backlog of them costs each replica some 200 claims a second, however long it is
DOUBT_S = 30.0  #: after an outage, for others to notice that they are connected again, and to write their records
AFTER_YOU_S = 0.03  #: by so much later than others looks a replica that has just left them a job


class Peers:
    """The queue's replicas that claim jobs, as their health records tell."""

    def __init__(self, redis: Redis, queue_name: str) -> None:
        self._redis = redis
        self._queue = queue_name
        self._doubt_until = 0.0
        self._known: frozenset[str] = frozenset()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._turn = 0.0
        self._left_at = float("-inf")

    async def know(self, function: str) -> bool:
        """Whether one of them may know a function: a yes may be a second old, a no is not older than the call."""
        asked = monotonic()
        if function in self._known and asked - self._read_at < GOOD_FOR_S:
            return True
        async with self._reading:
            if self._read_at <= asked:  # else somebody who waited as well has read for all
                read_at = monotonic()
                try:
                    self._known = await replicas.known(self._redis, self._queue)
                except UNAVAILABLE as error:
                    logger.warning("what other replicas know cannot be read: %s", error or type(error).__name__)
                    return True
                self._read_at = read_at
                if function in self._known:
                    logger.info("jobs of function %r, not known here, are left to replicas that know it", function)
        return function in self._known or monotonic() < self._doubt_until

    def doubt(self) -> None:
        """Redis was away, where records lapse as they do of replicas that are gone."""
        self._doubt_until = monotonic() + DOUBT_S

    def leave(self) -> float:
        """Leave them a job; return in how many seconds it is to be due again."""
        self._left_at = now = monotonic()
        self._turn = max(self._turn, now + LEFT_FOR_S) + random.uniform(0, 2 * TURN_S)
        return self._turn - now

    @property
    def head_start_s(self) -> float:
        """Seconds that they get at jobs that fall due, so that those who know them come first."""
        return AFTER_YOU_S if monotonic() - self._left_at < GOOD_FOR_S else 0
