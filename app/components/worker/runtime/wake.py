"""Wake-up: Redis tells at once when the queue gets a job, from whichever producer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import uuid4

from redis.asyncio import ConnectionPool
from redis.exceptions import OutOfMemoryError

from . import keys
from .wire import Wire


class Listener:
    """Calls ``on_job`` when a job is enqueued, ``on_end`` when one has ended, ``on_abort`` when an abort is asked for.

    It needs `notify-keyspace-events Kz`, which it proves by an event of its own. It is for a worker that idles: a
    busy one finds its next jobs by itself, and would read a message for each that is enqueued.

    Its connection is for this alone: Redis ends one that listens when some MiB of replies wait to be read.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        queue_name: str,
        *,
        on_job: Callable[[], None],
        on_end: Callable[[], None] | None = None,
        on_abort: Callable[[], None],
    ) -> None:
        self._wire = Wire(pool, heard=self._hear, lost=self._lose)
        self._probe = f"worker:probe:{uuid4().hex}"
        self.listening = False  #: whether a subscription stands
        self._proved = False
        handlers = {
            (queue_name, b"zadd"): on_job,
            (queue_name, b"zrem"): on_end,
            (keys.ABORT, b"zadd"): on_abort,
            (self._probe, b"zadd"): self._prove,
        }
        database = pool.connection_kwargs.get("db", 0)
        self._handlers = {
            (f"__keyspace@{database}__:{key}".encode(), event): call for (key, event), call in handlers.items() if call
        }
        self._channels = {channel for channel, _ in self._handlers}
        self._on_loss = on_job

    @property
    def proved(self) -> bool:
        """Whether enqueued jobs are heard of; where they are not, only looking helps."""
        return self.listening and self._proved

    async def start(self) -> None:
        """Subscribe, and ask for the proof; what was enqueued before this returns may not be heard of."""
        self.listening = True  # from here on a loss of the connection is ours
        try:
            await asyncio.gather(*(self._wire.call("SUBSCRIBE", channel) for channel in self._channels))
        except BaseException:
            self.listening = False
            raise
        if not self._proved:
            with contextlib.suppress(OutOfMemoryError):  # then it is left unproved for now
                await self._wire.call("ZADD", self._probe, 0, "probe")
                await self._wire.call("DEL", self._probe)

    async def check(self) -> None:
        """Make sure that we would hear: a connection that leads nowhere tells of nothing, its own end neither."""
        await self._wire.call("PING")

    async def stop(self) -> None:
        """Hear of nothing more."""
        if self.listening:
            self.listening = False
            await asyncio.gather(*(self._wire.call("UNSUBSCRIBE", channel) for channel in self._channels))

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    def _prove(self) -> None:
        self._proved = True

    def _hear(self, channel: bytes, event: bytes) -> None:
        if call := self._handlers.get((channel, event)):
            call()

    def _lose(self) -> None:
        if self.listening:
            self.listening = False
            self._on_loss()  # the worker looks for itself, and starts anew
