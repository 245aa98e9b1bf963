"""This repository's worker."""

from __future__ import annotations

from app.components.worker.runtime import NewJob, Worker, enqueue_many
from benchmarks.peers.arq import Arq


class Aegis(Arq):
    worker_class = Worker

    async def enqueue_noops(self, count: int) -> None:
        await enqueue_many(self.redis, (NewJob("noop") for _ in range(count)))


PEER = Aegis
