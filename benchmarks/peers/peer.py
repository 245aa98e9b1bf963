"""What a system has to offer to be measured."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

Run = Callable[[Coroutine[Any, Any, None]], None]

IN_FLIGHT = 20  #: enqueues at a time, of producers that are asynchronous and have no way to enqueue many


class Peer(ABC):
    """A system on the Redis of ``port``, in the process of a producer or of a worker with so many slots."""

    run: ClassVar[Run] = asyncio.run  #: or uvloop's, where jobs are coroutines

    def __init__(self, port: int, slots: int) -> None:
        self.url = f"redis://localhost:{port}"
        self.port = port
        self.slots = slots

    async def connect(self) -> None:  # noqa: B027, as most have nothing to do
        """Get ready to enqueue."""

    @abstractmethod
    async def enqueue(self, task: str, *args: float) -> None:
        """Enqueue one job."""

    async def enqueue_noops(self, count: int) -> None:
        """Enqueue so many no-op jobs, in the system's best way."""

        async def some(share: int) -> None:
            for _ in range(share):
                await self.enqueue("noop")

        await asyncio.gather(*(some(len(range(first, count, IN_FLIGHT))) for first in range(IN_FLIGHT)))

    @abstractmethod
    def work(self) -> None:
        """Run a worker until the process is terminated."""
