"""Wake-up: Redis tells at once when the queue gets a job, from whichever producer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import OutOfMemoryError

from . import keys
from .scripts import UNAVAILABLE, cancelled

SILENCE_S = 5.0


class Listener:
    """Calls ``on_job`` when a job is enqueued, ``on_end`` when one has ended, ``on_abort`` when an abort is asked for.

    It needs `notify-keyspace-events Kz`, which it proves by an event of its own. It is for a worker that idles: a
    busy one finds its next jobs by itself, and would read a message for each that is enqueued.
    """

    def __init__(
        self,
        redis: Redis,
        queue_name: str,
        database: int,
        *,
        on_job: Callable[[], None],
        on_end: Callable[[], None] | None = None,
        on_abort: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._probe = f"worker:probe:{uuid4().hex}"
        self._proved = False
        handlers = {
            (queue_name, b"zadd"): on_job,
            (queue_name, b"zrem"): on_end,
            (keys.ABORT, b"zadd"): on_abort,
            (self._probe, b"zadd"): self._prove,
        }
        self._handlers = {
            (f"__keyspace@{database}__:{key}".encode(), event): call for (key, event), call in handlers.items() if call
        }
        self._on_loss = on_job
        self._task: asyncio.Task[None] | None = None

    @property
    def listening(self) -> bool:
        """Whether a subscription stands."""
        return self._task is not None and not self._task.done()

    @property
    def proved(self) -> bool:
        """Whether enqueued jobs are heard of; where they are not, only looking helps."""
        return self.listening and self._proved

    def _prove(self) -> None:
        self._proved = True

    async def start(self) -> None:
        """Subscribe, and ask for the proof; what was enqueued before this returns may not be heard of."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(*{channel for channel, _ in self._handlers})
        self._task = asyncio.create_task(self._read(pubsub))
        if not self._proved:
            with contextlib.suppress(OutOfMemoryError):  # then it is left unproved for now
                await self._redis.zadd(self._probe, {"probe": 0})
                await self._redis.delete(self._probe)

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _read(self, pubsub: PubSub) -> None:
        try:
            while not cancelled():
                # With a timeout: without, the connection's own for replies would end the silence.
                message = await pubsub.get_message(timeout=SILENCE_S)
                if message and (call := self._handlers.get((message["channel"], message["data"]))):
                    call()
        except UNAVAILABLE:
            self._on_loss()  # the worker looks for itself, and starts anew
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
