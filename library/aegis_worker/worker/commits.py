"""Group commit: ends of jobs that come about while one batch is on its way to Redis make the next one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from aegis_worker.queue.scripts import RECONNECT, UNAVAILABLE, Scripts, cancelled
from aegis_worker.queue.settlement import Completed, Died, Reply, Settlement

logger = logging.getLogger(__name__)

MOST_JOBS = 250  #: a batch: Redis does nothing else meanwhile
MOST_BYTES = 4 << 20

Settled = Callable[[int], None]


class Commits:
    """Sends settlements in order, again and again until Redis has taken them; ``settled`` is given its ``Reply``."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._waiting: list[tuple[Settlement, Settled]] = []
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run())

    def add(self, settlement: Settlement, settled: Settled) -> None:
        self._waiting.append((settlement, settled))
        self._idle.clear()
        self._more.set()

    @property
    def pending(self) -> bool:
        """Whether something has not been taken yet."""
        return not self._idle.is_set()

    def check(self) -> None:
        """Raise what ended the task that stores, which does not end by itself."""
        if self._task.done():
            self._task.result()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all is taken, or for so long; return whether it is."""
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
            while batch := self._take():
                tokens, replies = await self._until_taken([settlement for settlement, _ in batch])
                for (settlement, settled), token, reply in zip(batch, tokens, replies, strict=True):
                    if reply != Reply.DONE and settlement.lease.token != token:
                        self._waiting.append((settlement, settled))  # it lapsed, and a claim of ours took it meanwhile
                    else:
                        settled(reply)
            self._more.clear()
            self._idle.set()

    def _take(self) -> list[tuple[Settlement, Settled]]:
        count = size = 0
        while count < min(MOST_JOBS, len(self._waiting)) and size < MOST_BYTES:
            settlement = self._waiting[count][0]
            if isinstance(settlement, Completed | Died):
                size += len(settlement.result)
            if isinstance(settlement, Died):
                size += len(settlement.payload)
            count += 1
        batch = self._waiting[:count]
        del self._waiting[:count]
        return batch

    async def _until_taken(self, batch: list[Settlement]) -> tuple[list[str], list[int]]:
        """Return the tokens of the leases as they were sent, and what became of each."""
        failures = 0
        while True:
            tokens = [settlement.lease.token for settlement in batch]
            try:
                settled = await self._scripts.settle(batch)
            except UNAVAILABLE as error:
                if cancelled():
                    raise asyncio.CancelledError from error
                failures += 1
                logger.warning("Redis is unavailable (%s), %d ends wait", error or type(error).__name__, len(batch))
                await asyncio.sleep(RECONNECT.delay(failures) + random.random() / 10)
            else:
                # A batch that was sent again may have been taken the first time, and only the reply was lost.
                return tokens, [Reply.DONE if failures and reply == Reply.OVER else reply for reply in settled]
