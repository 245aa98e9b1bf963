"""This repository's worker as it is shipped, but for its payloads, which are arq's, and a stock arq producer."""

from __future__ import annotations

import os

from app.components.worker.runtime.keys import short_name
from benchmarks.peers.arq import FUNCTIONS, QUEUE, Arq


class AegisStock(Arq):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        # The app reads its settings when it is imported.
        os.environ |= {
            "ENV": "bench",
            "LOG_LEVEL": "WARNING",
            "REDIS_URL": self.url,
            "REDIS_USERNAME": "default",
            "WORKER_SERIALIZER": "pickle",
        }

    async def _work(self) -> None:
        from app.components.worker.custom import CustomWorker
        from app.components.worker.queues import configured

        settings = type("WorkerSettings", (), {"functions": FUNCTIONS, "max_jobs": self.slots})
        await CustomWorker.for_queue(configured(short_name(QUEUE))(settings)).async_run()


PEER = AegisStock
