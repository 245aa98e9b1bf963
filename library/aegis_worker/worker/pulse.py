"""What a worker does twice a second, whatever its jobs do: health record, beat, aborts and cron jobs."""

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
FORGET_S = 1.0  #: time limit for the removal from the registry
FORGET_AGAIN_S = 0.05  #: between two tries of the removal
KEEP_ABORTS_S = 86_400  #: age at which requests to abort are deleted: they may be for jobs that had ended


class Health:
    """The health record of this replica in Redis.

    :param interval_s: seconds between two records
    :param state: returns the content; the record is written at once when its key ``state`` changes
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
        """Whether the record is in Redis, as far as this worker knows."""
        return self._stated is not None

    def invalidate(self) -> None:
        """Note that Redis was away, so the record has to be written again."""
        self._stated = None

    async def record(self) -> None:
        """Write the record if the interval is over or the state has changed."""
        state = self._state()
        if state["state"] == self._stated and monotonic() - self._written_at < self._interval_s:
            return
        await replicas.record(self._redis, *self._place, state, interval_s=self._interval_s)
        self._written_at, self._stated = monotonic(), state["state"]
        await self._redis.zremrangebyscore(keys.ABORT, "-inf", (time() - KEEP_ABORTS_S) * 1000)

    async def forget(self) -> None:
        """Leave the registry. If the connection is lost, try again with another one."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FORGET_S
        while loop.time() < until:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout_at(until):
                    await replicas.forget(self._redis, *self._place)
                    return
            await asyncio.sleep(FORGET_AGAIN_S)


class PulseOptions(Protocol):
    """The attributes of the worker that a pulse reads: those of arq, and one of ours."""

    allow_abort_jobs: bool
    allow_pick_jobs: bool  #: also decides whether cron jobs are enqueued
    poll_delay_s: float
    timezone: tzinfo | None
    on_beat: Callable[[], object] | None  #: called about once a second while the loop turns and Redis answers


class Pulse:
    """Beats until ``run()`` is cancelled.

    :param available: returns whether Redis answers the polls
    :param on_first: called after the first complete beat
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
        self.complete = False  #: one beat is complete: the cron jobs that were due at the start are enqueued

    def hurry(self) -> None:
        """Do the next beat now."""
        self._urgent.set()

    async def run(self) -> None:
        warned = ""
        while not cancelled():
            try:
                await self._once()
                warned = ""
            except UNAVAILABLE as error:
                if warned != str(error) and self._available():  # else the main loop logs it
                    reason = error or type(error).__name__
                    logger.warning("Redis is unavailable (%s): health records, aborts and cron jobs wait", reason)
                warned = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), PULSE_S)
            self._urgent.clear()

    async def _once(self) -> None:
        await self._health.record()
        await self._beat()
        if self._options.allow_abort_jobs:
            await self._runner.interrupt_aborted(self._redis)
        if self._options.allow_pick_jobs:  # last, because a full Redis refuses only cron jobs
            ahead = timedelta(seconds=2 * max(self._options.poll_delay_s, PULSE_S))  # as in arq
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
            except Exception:  # jobs do not need the beat: the health check acts if it is missing
                logger.exception("on_beat raised")
