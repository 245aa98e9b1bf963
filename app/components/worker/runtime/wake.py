"""Wake-up: Redis tells at once when the queue gets a job, from whichever producer.

A message costs a round trip before the job is claimed. Our own producers' script saves it: it rings a bell, for which
the claim of a worker that idles waits in Redis already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from redis.asyncio import ConnectionPool
from redis.exceptions import OutOfMemoryError

from . import keys
from .scripts import UNAVAILABLE, Call
from .wire import Field, Wire

PARK_S = 4.0  #: that a claim waits in Redis: a worker which stops meanwhile may take a job until then
UNBLOCK_AGAIN_S = 0.001  #: Redis may come to read what is to wait only after it was told to end that


class Listener:
    """Calls ``on_job`` when a job is enqueued, ``on_end`` when one has ended, ``on_abort`` when an abort is asked for.

    It needs `notify-keyspace-events Kz`, which it proves by an event of its own. It is for a worker that idles: a
    busy one finds its next jobs by itself, and would read a message for each that is enqueued.

    Its connection carries no large replies: Redis ends one that listens when some MiB of them wait to be read.

    :param call: runs a command over another connection
    :param park_s: how long a parked command waits for a job
    """

    def __init__(
        self,
        pool: ConnectionPool,
        queue_name: str,
        *,
        on_job: Callable[[], None],
        on_end: Callable[[], None] | None = None,
        on_abort: Callable[[], None],
        call: Call,
        park_s: float = PARK_S,
    ) -> None:
        self._wire = Wire(pool, heard=self._hear, lost=self._lose)
        self._call = call
        self.park_s = park_s
        self._bell = keys.bell(queue_name)
        self._client_id = 0
        self._parked = False
        self.roused = False  #: whether what was parked last was ended by ``rouse``
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
            self._client_id, *_ = await asyncio.gather(
                self._wire.call("CLIENT", "ID"), *(self._wire.call("SUBSCRIBE", channel) for channel in self._channels)
            )
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

    async def park(self, *command: Field) -> Any:
        """Have Redis run a command once a bell rings, ``rouse`` is called or ``park_s`` are over; return its reply."""
        self._parked, self.roused = True, False
        try:
            first = ("BZPOPMIN", self._bell, self.park_s)
            return await self._wire.call(*command, first=first, first_s=self.park_s)
        finally:
            self._parked = False

    def rouse(self) -> bool:
        """Have Redis run what is parked now; return False where nothing is, or its reply is there.

        What we were told of until then, it finds: messages and replies come in the order in which things happened.
        """
        if not (self._parked and self._wire.owed):
            return False
        if not self.roused:
            self.roused = True
            asyncio.get_running_loop().call_soon(self._unblock_if_owed)
        return True

    def _unblock_if_owed(self) -> None:
        if self._wire.owed:  # else its reply came right behind the message
            self._unblocking = asyncio.create_task(self._unblock())

    async def _unblock(self) -> None:
        try:
            unblocked = await self._call("CLIENT", "UNBLOCK", self._client_id)
        except UNAVAILABLE as error:
            if self._parked:
                self.close(error)
        else:
            if not unblocked:
                asyncio.get_running_loop().call_later(UNBLOCK_AGAIN_S, self._unblock_if_owed)

    async def stop(self) -> None:
        """Hear of nothing more."""
        if self.listening:
            self.listening = False
            await asyncio.gather(*(self._wire.call("UNSUBSCRIBE", channel) for channel in self._channels))

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; what is parked fails with ``error``."""
        self.listening = False
        self._wire.close(error)

    def _prove(self) -> None:
        self._proved = True

    def _hear(self, channel: bytes, event: bytes) -> None:
        if call := self._handlers.get((channel, event)):
            call()

    def _lose(self) -> None:
        if self.listening:
            self.listening = False
            self._on_loss()  # the worker looks for itself, and starts anew
