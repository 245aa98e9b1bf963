"""streaQ: Redis streams on coredis; another worker takes over what is not acknowledged for a minute."""

from __future__ import annotations

from typing import ClassVar

import uvloop
from streaq import Worker

from benchmarks.peers.peer import Peer, Run
from benchmarks.peers.tasks import ASYNC

BATCH = 1000


class Streaq(Peer):
    run: ClassVar[Run] = uvloop.run

    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.worker = Worker(self.url, queue_name="bench", concurrency=slots, anyio_kwargs={"use_uvloop": True})
        self.tasks = {name: self.worker.task(name=name, ttl=3600)(task) for name, task in ASYNC.items()}

    async def connect(self) -> None:
        await self.worker.__aenter__()  # until the process ends

    async def enqueue(self, task: str, *args: float) -> None:
        await self.tasks[task].enqueue(*args)

    async def enqueue_noops(self, count: int) -> None:
        for first in range(0, count, BATCH):
            await self.worker.enqueue_many(
                [self.tasks["noop"].enqueue() for _ in range(first, min(first + BATCH, count))]
            )

    def work(self) -> None:
        self.worker.run_sync()


PEER = Streaq
