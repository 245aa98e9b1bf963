"""This repository's worker, and a stock arq producer."""

from __future__ import annotations

from app.components.worker.runtime import Worker
from benchmarks.peers.arq import Arq


class AegisStock(Arq):
    worker_class = Worker


PEER = AegisStock
