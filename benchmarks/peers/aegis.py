"""This repository's worker, and its own producer; a stock arq producer takes three round trips in place of one."""

from __future__ import annotations

from app.components.worker.runtime import NewJob, Worker, enqueue_many
from benchmarks.peers.arq import Arq


class Aegis(Arq):
    worker_class = Worker

    async def enqueue(self, task: str, *args: float) -> None:
        await enqueue_many(self.redis, [NewJob(task, args)])

    async def enqueue_noops(self, count: int) -> None:
        await enqueue_many(self.redis, (NewJob("noop") for _ in range(count)))


PEER = Aegis
