"""Stock arq at its best: on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

import uvloop
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

from benchmarks.peers.peer import Peer, Run
from benchmarks.peers.tasks import ASYNC, with_context

QUEUE = "arq:queue:bench"
FUNCTIONS = [func(with_context(task), name=name) for name, task in ASYNC.items()]


class Arq(Peer):
    worker_class = Worker
    run: ClassVar[Run] = uvloop.run

    async def connect(self) -> None:
        self.redis = await create_pool(RedisSettings(port=self.port), default_queue_name=QUEUE)

    async def enqueue(self, task: str, *args: float) -> None:
        await self.redis.enqueue_job(task, *args)

    async def _work(self) -> None:
        worker = self.worker_class(
            functions=FUNCTIONS,
            queue_name=QUEUE,
            redis_settings=RedisSettings(port=self.port),
            max_jobs=self.slots,
        )
        await worker.async_run()

    def work(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # stock arq's way to end
            type(self).run(self._work())


PEER = Arq
