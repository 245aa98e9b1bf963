"""SAQ: jobs are moved to a list of running ones, and swept back from it."""

from __future__ import annotations

from typing import ClassVar

import uvloop
from saq import Queue, Worker

from benchmarks.peers.peer import Peer, Run
from benchmarks.peers.tasks import ASYNC, with_context

PARAMETERS = {"now": "asked", "sleep": "seconds"}


class Saq(Peer):
    run: ClassVar[Run] = uvloop.run

    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.queue = Queue.from_url(self.url, name="bench")

    async def connect(self) -> None:
        await self.queue.connect()

    async def enqueue(self, task: str, *args: float) -> None:
        arguments = {PARAMETERS[task]: args[0]} if args else {}
        await self.queue.enqueue(task, ttl=3600, retries=3, **arguments)

    def work(self) -> None:
        functions = [(name, with_context(task)) for name, task in ASYNC.items()]
        uvloop.run(Worker(self.queue, functions, concurrency=self.slots).start())


PEER = Saq
