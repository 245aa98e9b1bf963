"""This repository's worker."""

from __future__ import annotations

from app.components.worker.runtime import Worker
from benchmarks.peers.arq import Arq


class Aegis(Arq):
    worker_class = Worker

    async def enqueue_noops(self, count: int) -> None:
        await super().enqueue_noops(count)  # a stock arq producer


PEER = Aegis
