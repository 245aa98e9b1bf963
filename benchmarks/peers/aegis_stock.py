"""This repository's worker as it is shipped, but for its payloads, which are arq's, and a stock arq producer."""

from __future__ import annotations

import os

from aegis_worker.queue.keys import short_name
from benchmarks.peers.arq import FUNCTIONS, QUEUE, Arq


class AegisStock(Arq):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        # The project's settings are read when they are first asked for.
        os.environ |= {
            "ENV": "bench",
            "LOG_LEVEL": "WARNING",
            "REDIS_URL": self.url,
            "REDIS_USERNAME": "default",
            "WORKER_SERIALIZER": "pickle",
        }

    async def _work(self) -> None:
        from aegis_worker.project import current

        settings = type("WorkerSettings", (), {"functions": FUNCTIONS, "max_jobs": self.slots})
        await current().make_worker(short_name(QUEUE), settings).async_run()


PEER = AegisStock
