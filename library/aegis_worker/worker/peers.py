"""The functions that other replicas know.

While replicas have different versions, a job that this replica cannot run goes back to the queue for one that can.
"""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic

from redis.asyncio import Redis

from aegis_worker.queue import replicas
from aegis_worker.queue.scripts import UNAVAILABLE

logger = logging.getLogger(__name__)

CACHE_S = 1.0  #: how long the known functions are used before they are read again
GIVEN_BACK_S = 0.2  #: a job that goes back for other replicas is due after so long,
TURN_S = 0.005  #: and the next one so much later: then many such jobs cost each replica only 200 claims a second
DOUBT_S = 30.0  #: after an outage: time for other replicas to connect again and to write their records
HEAD_START_S = 0.03  #: a replica that has just given back such a job claims so much later than others


class Peers:
    """The replicas that claim jobs of the queue, by their health records."""

    def __init__(self, redis: Redis, queue_name: str) -> None:
        self._redis = redis
        self._queue = queue_name
        self._doubt_until = 0.0
        self._known: frozenset[str] = frozenset()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._turn = 0.0
        self._gave_back_at = float("-inf")

    async def know(self, function: str) -> bool:
        """Return whether another replica may know a function. True may be a second old, False is up to date."""
        asked = monotonic()
        if function in self._known and asked - self._read_at < CACHE_S:
            return True
        async with self._reading:
            if self._read_at <= asked:  # else another call has read them meanwhile
                read_at = monotonic()
                try:
                    self._known = await replicas.known(self._redis, self._queue)
                except UNAVAILABLE as error:
                    logger.warning(
                        "the health records of other replicas cannot be read: %s", error or type(error).__name__
                    )
                    return True
                self._read_at = read_at
                if function in self._known:
                    logger.info("function %r is not known here: its jobs are left to replicas that know it", function)
        return function in self._known or monotonic() < self._doubt_until

    def doubt(self) -> None:
        """Note that Redis was away: the records of living replicas may have expired, too."""
        self._doubt_until = monotonic() + DOUBT_S

    def give_back(self) -> float:
        """Note that a job goes back for other replicas. Return the seconds until it should be due again."""
        self._gave_back_at = now = monotonic()
        self._turn = max(self._turn, now + GIVEN_BACK_S) + random.uniform(0, 2 * TURN_S)
        return self._turn - now

    @property
    def head_start_s(self) -> float:
        """Seconds that this replica waits longer for the next due job, so that other replicas claim it first."""
        return HEAD_START_S if monotonic() - self._gave_back_at < CACHE_S else 0
