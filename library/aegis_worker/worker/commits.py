"""Group commit: the ends of jobs that come while one batch is sent to Redis form the next batch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from aegis_worker.queue.scripts import RECONNECT, UNAVAILABLE, Scripts, cancelled
from aegis_worker.queue.settlement import Reply, Settlement

logger = logging.getLogger(__name__)

MOST_JOBS = 250  #: in a batch, because Redis does nothing else meanwhile
MOST_BYTES = 4 << 20

Settled = Callable[[int], None]


class Commits:
    """Sends settlements to Redis in order, and repeats this until Redis has accepted them."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._waiting: list[tuple[Settlement, Settled]] = []
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run())

    def add(self, settlement: Settlement, settled: Settled) -> None:
        """Send a settlement soon. Then ``settled`` is called with the ``Reply`` of Redis."""
        self._waiting.append((settlement, settled))
        self._idle.clear()
        self._more.set()

    @property
    def pending(self) -> bool:
        """Whether Redis has not accepted all settlements yet."""
        return not self._idle.is_set()

    def check(self) -> None:
        """Raise the error that ended the task of this object, if it has ended. It does not end by itself."""
        if self._task.done():
            self._task.result()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until Redis has accepted all, at most ``timeout_s`` seconds. Return whether it has."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._more.wait()
            while batch := self._next_batch():
                tokens, replies = await self._send([settlement for settlement, _ in batch])
                for (settlement, settled), token, reply in zip(batch, tokens, replies, strict=True):
                    if reply != Reply.DONE and settlement.lease.token != token:
                        # The lease lapsed, and this worker has claimed the job again meanwhile.
                        self._waiting.append((settlement, settled))
                    else:
                        settled(reply)
            self._more.clear()
            self._idle.set()

    def _next_batch(self) -> list[tuple[Settlement, Settled]]:
        count = size = 0
        while count < min(MOST_JOBS, len(self._waiting)) and size < MOST_BYTES:
            size += self._waiting[count][0].size
            count += 1
        batch = self._waiting[:count]
        del self._waiting[:count]
        return batch

    async def _send(self, batch: list[Settlement]) -> tuple[list[str], list[int]]:
        """Send a batch until Redis accepts it. Return the tokens that were sent, and a ``Reply`` for each."""
        failures = 0
        while True:
            tokens = [settlement.lease.token for settlement in batch]
            try:
                settled = await self._scripts.settle(batch)
            except UNAVAILABLE as error:
                if cancelled():
                    raise asyncio.CancelledError from error
                failures += 1
                reason = error or type(error).__name__
                logger.warning("Redis is unavailable (%s), the ends of %d jobs wait to be stored", reason, len(batch))
                await asyncio.sleep(RECONNECT.delay(failures) + random.random() / 10)
            else:
                # A batch that was sent again may have been accepted before, and only the reply was lost.
                return tokens, [Reply.DONE if failures and reply == Reply.OVER else reply for reply in settled]
