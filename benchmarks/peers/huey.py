"""huey: threads; a job leaves Redis when a thread takes it, so a crash loses it."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.peers.peer import Peer
from benchmarks.peers.tasks import BLOCKING


class Huey(Peer):
    def __init__(self, port: int, slots: int) -> None:
        super().__init__(port, slots)
        self.huey = RedisHuey("bench", url=self.url, store_none=True)
        self.tasks = {name: self.huey.task(name=name)(task) for name, task in BLOCKING.items()}

    async def enqueue(self, task: str, *args: float) -> None:
        self.tasks[task](*args)

    def work(self) -> None:
        self.huey.create_consumer(workers=self.slots, worker_type="thread").run()


PEER = Huey
