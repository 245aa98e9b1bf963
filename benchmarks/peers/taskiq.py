"""taskiq: Redis streams, acknowledged when the result is stored; another worker takes over what is not."""

from __future__ import annotations

from typing import ClassVar

import uvloop
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.peer import Peer, Run
from benchmarks.peers.tasks import ASYNC


class Taskiq(Peer):
    run: ClassVar[Run] = uvloop.run

    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        results = RedisAsyncResultBackend(f"{self.url}/1", result_ex_time=3600)
        self.broker = RedisStreamBroker(self.url).with_result_backend(results)
        self.tasks = {name: self.broker.register_task(task, name) for name, task in ASYNC.items()}

    async def connect(self) -> None:
        await self.broker.startup()

    async def enqueue(self, task: str, *args: float) -> None:
        await self.tasks[task].kiq(*args)

    def work(self) -> None:
        uvloop.run(
            run_receiver_task(self.broker, max_async_tasks=self.slots, max_prefetch=self.slots, run_startup=True)
        )


PEER = Taskiq
