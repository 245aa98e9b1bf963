"""What a worker does twice a second whatever its jobs do: health record, beat, aborts, cron jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from time import monotonic, time
from typing import Any

from arq.connections import ArqRedis

from aegis_worker.queue import keys, replicas
from aegis_worker.queue.scripts import UNAVAILABLE, cancelled
from aegis_worker.worker.cron import Cron
from aegis_worker.worker.runner import Runner

logger = logging.getLogger(__name__)

PULSE_S = 0.5
BEAT_EVERY_S = 1.0
FORGET_S = 1.0  #: what Redis has to take us out of the registry
FORGET_AGAIN_S = 0.05  #: between two tries of that
KEEP_ABORTS_S = 86_400  #: for jobs that are queued; those of jobs that had ended are left over


class Health:
    """This replica's record in Redis.

    :param state: what it says; it is written anew when its ``state`` changes
    """

    def __init__(
        self, redis: ArqRedis, queue_name: str, replica: str, *, interval_s: float, state: Callable[[], dict[str, Any]]
    ) -> None:
        self._redis = redis
        self._place = queue_name, replica
        self._interval_s = interval_s
        self._state = state
        self._written = 0.0
        self._stated: str | None = None

    @property
    def known(self) -> bool:
        """Whether others can read it, as far as we know."""
        return self._stated is not None

    def lapse(self) -> None:
        """Have it written anew: Redis was away."""
        self._stated = None

    async def record(self) -> None:
        """Write it, where the interval is over or the state has changed."""
        state = self._state()
        if state["state"] == self._stated and monotonic() - self._written < self._interval_s:
            return
        await replicas.record(self._redis, *self._place, state, interval_s=self._interval_s)
        self._written, self._stated = monotonic(), state["state"]
        await self._redis.zremrangebyscore(keys.ABORT, "-inf", (time() - KEEP_ABORTS_S) * 1000)

    async def forget(self) -> None:
        """Leave the registry; where that loses its connection, over another."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FORGET_S
        while loop.time() < until:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout_at(until):
                    await replicas.forget(self._redis, *self._place)
                    return
            await asyncio.sleep(FORGET_AGAIN_S)


class Pulse:
    """Beats from ``run()`` to its cancellation.

    :param on_beat: called about once a second for as long as the loop turns and Redis answers
    :param available: whether Redis answers the polls
    :param accepts: whether cron jobs are to be enqueued
    :param on_first: called once all of it was done for the first time
    :param ahead_s: by how much cron jobs are enqueued before their time
    """

    def __init__(
        self,
        redis: ArqRedis,
        health: Health,
        runner: Runner,
        cron: Cron,
        *,
        on_beat: Callable[[], object] | None,
        aborts: bool,
        available: Callable[[], bool],
        accepts: Callable[[], bool],
        on_first: Callable[[], None],
        ahead_s: float,
        timezone: tzinfo | None,
    ) -> None:
        self._redis = redis
        self._health = health
        self._runner = runner
        self._cron = cron
        self._on_beat = on_beat
        self._aborts = aborts
        self._available = available
        self._accepts = accepts
        self._on_first = on_first
        self._ahead = timedelta(seconds=ahead_s)
        self._timezone = timezone
        self._last_beat = 0.0
        self._urgent = asyncio.Event()
        self.complete = False  #: all of it was done once: cron jobs that were due when we began are enqueued

    def hurry(self) -> None:
        """Beat before its time."""
        self._urgent.set()

    async def run(self) -> None:
        warned = ""
        while not cancelled():
            try:
                await self._once()
                warned = ""
            except UNAVAILABLE as error:
                if warned != str(error) and self._available():  # else the main loop says so
                    logger.warning("health, aborts and cron jobs wait for Redis (%s)", error or type(error).__name__)
                warned = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), PULSE_S)
            self._urgent.clear()

    async def _once(self) -> None:
        await self._health.record()
        await self._beat()
        if self._aborts:
            await self._runner.interrupt_aborted(self._redis)
        if self._accepts():  # last, since of all this a full Redis refuses cron jobs alone
            await self._cron.enqueue_due(datetime.now(tz=self._timezone), self._ahead)
        if not self.complete:
            self.complete = True
            self._on_first()

    async def _beat(self) -> None:
        if self._on_beat and self._available() and monotonic() - self._last_beat >= BEAT_EVERY_S:
            await self._redis.ping()
            self._last_beat = monotonic()
            try:
                self._on_beat()
            except Exception:  # whoever waits for the beat acts; jobs are none the worse for it
                logger.exception("on_beat raised")
