"""dramatiq: threads; jobs are acknowledged, and those of a worker that died go back after a minute."""

from __future__ import annotations

import signal

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.peer import Peer
from benchmarks.peers.tasks import BLOCKING


class Dramatiq(Peer):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.broker = RedisBroker(url=self.url)
        self.broker.add_middleware(
            Results(backend=RedisBackend(url=f"{self.url}/1"), store_results=True, result_ttl=3_600_000)
        )
        self.actors = {
            name: dramatiq.actor(task, actor_name=name, broker=self.broker) for name, task in BLOCKING.items()
        }

    async def enqueue(self, task: str, *args: float) -> None:
        self.actors[task].send(*args)

    def work(self) -> None:
        # An idle consumer waits for longer from look to look, up to this; a second by default.
        dramatiq.Worker(self.broker, worker_threads=self.slots, worker_timeout=100).start()
        signal.pause()


PEER = Dramatiq
