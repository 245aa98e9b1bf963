"""This repository's worker, and its own producer."""

from __future__ import annotations

from aegis_worker import NewJob, Producer
from benchmarks.peers.aegis_stock import AegisStock
from benchmarks.peers.arq import QUEUE


class Aegis(AegisStock):
    async def connect(self) -> None:
        from aegis_worker.project import current
        from aegis_worker.redis.pool import create_pool

        self.redis = create_pool(current().config, queue_name=QUEUE)
        self.producer = Producer(self.redis)

    async def enqueue(self, task: str, *args: float) -> None:
        await self.producer.enqueue(NewJob(task, args))

    async def enqueue_noops(self, count: int) -> None:
        await self.producer.enqueue_many(NewJob("noop") for _ in range(count))


PEER = Aegis
