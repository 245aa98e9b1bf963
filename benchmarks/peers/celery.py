"""Celery: a pool of threads; jobs are acknowledged when they are done."""

from __future__ import annotations

from celery import Celery

from benchmarks.peers.peer import Peer
from benchmarks.peers.tasks import BLOCKING

SWITCHED_OFF = ("--without-gossip", "--without-mingle", "--without-heartbeat")  # none is needed by one worker


class CeleryPeer(Peer):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.app = Celery("bench", broker=self.url, backend=f"{self.url}/1")
        self.app.conf.update(
            task_acks_late=True,
            worker_prefetch_multiplier=10,
            result_expires=3600,
            broker_connection_retry_on_startup=True,
        )
        self.tasks = {name: self.app.task(name=name)(task) for name, task in BLOCKING.items()}

    async def enqueue(self, task: str, *args: float) -> None:
        self.tasks[task].delay(*args)

    def work(self) -> None:
        options = ["--pool=threads", f"--concurrency={self.slots}", "--loglevel=WARNING", *SWITCHED_OFF]
        self.app.worker_main(["worker", *options])


PEER = CeleryPeer
