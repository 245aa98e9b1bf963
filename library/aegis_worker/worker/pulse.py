"""What a worker does twice a second whatever its jobs do: health record, beat, aborts, cron jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from time import monotonic, time
from typing import Any, Protocol

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
        self._written_at = 0.0
        self._stated: str | None = None

    @property
    def written(self) -> bool:
        """Whether others can read it, as far as we know."""
        return self._stated is not None

    def invalidate(self) -> None:
        """Have it written again at once, since Redis was away."""
        self._stated = None

    async def record(self) -> None:
        """Write it, where the interval is over or the state has changed."""
        state = self._state()
        if state["state"] == self._stated and monotonic() - self._written_at < self._interval_s:
            return
        await replicas.record(self._redis, *self._place, state, interval_s=self._interval_s)
        self._written_at, self._stated = monotonic(), state["state"]
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


class PulseOptions(Protocol):
    """What a pulse reads of its worker: arq's own attributes, and one of ours."""

    allow_abort_jobs: bool
    allow_pick_jobs: bool  #: and whether cron jobs are to be enqueued
    poll_delay_s: float
    timezone: tzinfo | None
    on_beat: Callable[[], object] | None  #: called about once a second while the loop turns and Redis answers


class Pulse:
    """Beats from ``run()`` to its cancellation.

    :param available: whether Redis answers the polls
    :param on_first: called once all of it was done for the first time
    """

    def __init__(
        self,
        options: PulseOptions,
        redis: ArqRedis,
        health: Health,
        runner: Runner,
        cron: Cron,
        *,
        available: Callable[[], bool],
        on_first: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._health = health
        self._runner = runner
        self._cron = cron
        self._options = options
        self._available = available
        self._on_first = on_first
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
        if self._options.allow_abort_jobs:
            await self._runner.interrupt_aborted(self._redis)
        if self._options.allow_pick_jobs:  # last, since of all this a full Redis refuses cron jobs alone
            ahead = timedelta(seconds=2 * max(self._options.poll_delay_s, PULSE_S))  # as arq
            await self._cron.enqueue_due(datetime.now(tz=self._options.timezone), ahead)
        if not self.complete:
            self.complete = True
            self._on_first()

    async def _beat(self) -> None:
        on_beat = self._options.on_beat
        if on_beat and self._available() and monotonic() - self._last_beat >= BEAT_EVERY_S:
            await self._redis.ping()
            self._last_beat = monotonic()
            try:
                on_beat()
            except Exception:  # whoever waits for the beat acts; jobs are none the worse for it
                logger.exception("on_beat raised")
