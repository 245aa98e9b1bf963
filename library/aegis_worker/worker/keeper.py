"""A thread that renews leases and watches the event loop.

A blocked event loop does not lose its jobs, and its process ends if it is blocked for too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from time import monotonic

from redis.asyncio import ConnectionPool

from aegis_worker.queue.scripts import RENEWAL_TICK_S, RENEWALS_PER_LEASE, UNAVAILABLE, Call, Script, Scripts
from aegis_worker.queue.settlement import Lease
from aegis_worker.redis.wire import Wire

logger = logging.getLogger(__name__)

RETRY_S = 0.5
JOIN_S = 0.5  #: wait for the end of the thread; if it waits for Redis, it ends later, by itself
START_S = 5.0
LOG_S = 1.0  #: most time that a line of the log may take
BLOCKED_EXIT_CODE = 70  #: EX_SOFTWARE of sysexits.h


class Keeper:
    """Runs from ``start()`` to ``stop()``, with its own event loop and its own connection.

    :param pool: its options are used to connect
    :param scripts: makes the scripts for a connection
    :param leases: returns the leases to renew; called in the thread
    :param lost: called in the thread with the leases that other workers have now
    :param lease_s: seconds that a lease lasts
    :param blocked_log_s: after so many seconds, the stack of a blocked event loop is logged
    :param blocked_exit_s: after so many seconds, a blocked event loop ends the process
    :param listens: returns whether the worker listens for new jobs; while its loop is blocked, the thread rings the
        bell every tick instead
    :param bell: the key of the bell
    """

    def __init__(
        self,
        pool: ConnectionPool,
        scripts: Callable[[Call], Scripts],
        *,
        leases: Callable[[], Iterable[Lease]],
        lost: Callable[[list[Lease]], None],
        lease_s: float,
        blocked_log_s: float,
        blocked_exit_s: float,
        listens: Callable[[], bool],
        bell: str,
    ) -> None:
        self._every_s = lease_s / RENEWALS_PER_LEASE
        self._wire = Wire(pool, timeout_s=self._every_s / 2)  # leaves time for another try
        self._scripts = scripts(self._wire.call)
        self._ring = Script(self._wire.call, "wake")
        self._listens, self._bell = listens, bell
        self._leases = leases
        self._lost = lost
        self._log_s = blocked_log_s
        self._exit_s = blocked_exit_s
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._soon = False
        self._turned, self._ticks, self._logged = True, 0, False
        self._turn: asyncio.TimerHandle | None = None
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="keeper", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()
        if not self._ready.wait(START_S):
            raise RuntimeError("the thread that renews leases did not start")

    def renew_soon(self) -> None:
        """Renew at the next tick."""
        self._soon = True

    def check(self) -> None:
        """Raise ``RuntimeError`` if the thread has ended. It does not end by itself."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that renews leases has ended")

    async def stop(self) -> None:
        if self._thread.is_alive():
            self._own_loop.call_soon_threadsafe(self._stopping.set)
            with contextlib.suppress(TimeoutError):  # without the loop's executor: the threads of jobs may fill it
                await asyncio.wait_for(self._ended.wait(), JOIN_S)
        if self._turn:
            self._turn.cancel()

    def _beat(self) -> None:
        self._turned = True
        self._turn = self._loop.call_later(RENEWAL_TICK_S, self._beat)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _run(self) -> None:
        self._own_loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        due = monotonic()
        while not self._stopping.is_set() and not self._loop.is_closed():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RENEWAL_TICK_S)
            now = monotonic()
            self._watch()
            if now >= due or self._soon:
                self._soon = False
                due = now + (self._every_s if await self._renew() else RETRY_S)
            if self._ticks and self._listens():
                with contextlib.suppress(*UNAVAILABLE):
                    await self._ring((self._bell,), ())
        self._wire.close()

    async def _renew(self) -> bool:
        leases = list(self._leases())
        if not leases:
            with contextlib.suppress(*UNAVAILABLE):  # to have a connection when there are leases
                await self._wire.call("PING")
            return True
        try:
            lost = await self._scripts.renew(leases)
        except UNAVAILABLE as error:
            _log(logging.WARNING, "leases cannot be renewed: %s", error or type(error).__name__)
            return False
        if lost:
            self._lost(lost)
        return True

    def _watch(self) -> None:
        """Check the event loop. Called every tick.

        Ticks are counted, and not time: while the whole process stands still, its loop is not blocked.
        """
        if self._turned or not self._loop.is_running():  # a loop that has ended is not blocked
            self._turned, self._ticks, self._logged = False, 0, False
            return
        self._ticks += 1
        blocked_s = self._ticks * RENEWAL_TICK_S
        if blocked_s < self._log_s:
            return
        if not self._logged or blocked_s >= self._exit_s:
            frame = sys._current_frames().get(self._watched)
            stack = "".join(traceback.format_stack(frame)) if frame else ""
            _log(logging.ERROR, "the event loop has not turned for %.1fs; its stack:\n%s", blocked_s, stack)
            self._logged = True
        if blocked_s >= self._exit_s:
            text = "the event loop has not turned for %.1fs, and the limit is %.1fs: the process ends"
            _log(logging.CRITICAL, text, blocked_s, self._exit_s)
            os._exit(BLOCKED_EXIT_CODE)


def _log(level: int, message: str, *values: object) -> None:
    """Log in a thread, and go on after ``LOG_S``. The log itself may block, if nobody reads it."""
    thread = threading.Thread(target=logger.log, args=(level, message, *values), daemon=True)
    thread.start()
    thread.join(LOG_S)
