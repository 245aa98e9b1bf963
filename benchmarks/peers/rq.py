"""RQ: a worker that runs one job at a time, in its own process."""

from __future__ import annotations

from rq import Queue, SimpleWorker

from benchmarks.peers import tasks
from benchmarks.peers.peer import Peer
from redis import Redis

BATCH = 1000


class Rq(Peer):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.redis = Redis(port=port)
        self.queue = Queue("bench", connection=self.redis)

    async def enqueue(self, task: str, *args: float) -> None:
        self.queue.enqueue(tasks.BLOCKING[task], *args, result_ttl=3600)

    async def enqueue_noops(self, count: int) -> None:
        for first in range(0, count, BATCH):
            self.queue.enqueue_many(
                [Queue.prepare_data(tasks.noop, result_ttl=3600) for _ in range(first, min(first + BATCH, count))]
            )

    def work(self) -> None:
        SimpleWorker([self.queue], connection=self.redis).work(logging_level="WARNING")


PEER = Rq
