"""Wake-up: the next claim of a worker that idles waits in Redis for the queue's bell.

The bell is a key, and to ring it is to write it. Our own producers' script rings it, and so does a claim that leaves
due jobs behind. A few of the idle workers listen to Redis's keyspace events, which tell them of jobs from stock
producers; then they ring the bell. So a job wakes one or two workers, whatever the number of those that idle. Those
which have waited longest come first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Any
from uuid import uuid4

from redis.asyncio import ConnectionPool
from redis.exceptions import NoPermissionError, OutOfMemoryError

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import UNAVAILABLE, Call, Script
from aegis_worker.redis.wire import Field, Wire

logger = logging.getLogger(__name__)

PARK_S = 4.0  #: that a claim waits in Redis: a worker which stops meanwhile may take a job until then
ENOUGH = 2  #: that listen, since one of them may die
DOUBT_S = 60.0  #: after a job of which nobody was told


class Listener:
    """Waits for the bell, and listens: ``on_job`` is called when a job was enqueued for which this worker has to poll,
    ``on_abort`` when an abort is asked for.

    It needs `notify-keyspace-events Kz`, which it proves by an event of its own. It is for a worker that idles: a
    busy one finds its next jobs by itself, and would read a message for each job that is enqueued.

    Its connection carries no large replies, since Redis closes one that listens when some MiB of them wait to be read.

    :param call: runs a command over another connection
    :param ends: listen for jobs that end, too
    :param park_s: how long a parked command waits at most
    """

    def __init__(
        self,
        pool: ConnectionPool,
        queue_name: str,
        *,
        on_job: Callable[[], None],
        on_abort: Callable[[], None],
        call: Call,
        ends: bool = False,
        park_s: float = PARK_S,
    ) -> None:
        self._wire = Wire(pool, heard=self._hear, lost=self._lose)
        self._ring_bell = Script(call, "wake")
        self.park_s = park_s
        name = uuid4().hex
        self._bell, self._own_bell = keys.bell(queue_name), keys.own_bell(name)
        self._parked = False
        self._engaged = False
        self.unprompted = False  #: what was parked last ran without a bell
        self._doubt_until = 0.0
        self._to_ring: set[str] = set()
        self._ringing: asyncio.Task[None] | None = None
        self.connected = False
        self.listening = False  #: to the queue
        self._asked = self._proved = self._may_park = self._may_listen = False
        database = pool.connection_kwargs.get("db", 0)
        self._queue_channel, abort_channel, probe_channel = (
            f"__keyspace@{database}__:{key}".encode() for key in (queue_name, keys.ABORT, keys.probe(name))
        )
        self._channels = (abort_channel, probe_channel)
        self._handlers = {
            (self._queue_channel, b"zadd"): self._hear_job,
            (abort_channel, b"zadd"): on_abort,
            (probe_channel, b"zadd"): self._prove,
        }
        if ends:
            self._handlers[self._queue_channel, b"zrem"] = self._hear_job
        self._on_job = on_job
        self._probe = keys.probe(name)

    @property
    def proved(self) -> bool:
        """Whether new jobs wake this worker; where they do not, it has to poll."""
        return self.connected and self._proved and self._may_park

    async def engage(self) -> None:
        """Connect, where there is no connection: the worker idles."""
        self._engaged = True
        if not self.connected:
            await self._start()

    async def release(self) -> None:
        """Stop listening: the worker is busy, and has no need to be notified. What it was notified of, others may not
        know."""
        if self._engaged:
            self._engaged = False
            await self.unlisten()

    async def _start(self) -> None:
        """Connect, and ask for the proof."""
        self.connected = True  # from here on a loss of the connection is ours
        self._asked, self._proved, self._may_park, self._may_listen = False, False, True, True
        try:
            await asyncio.gather(*(self._wire.call("SUBSCRIBE", channel) for channel in self._channels))
            await self._ask()
        except NoPermissionError as error:
            self._may_listen = False
            logger.warning("the queue is polled, since this user may not listen to it: %s", error)
        except BaseException:
            self.connected = False
            raise

    async def _ask(self) -> None:
        with contextlib.suppress(OutOfMemoryError):  # then it is for later
            await self._wire.call("ZADD", self._probe, 0, "probe")
            await self._wire.call("DEL", self._probe)
            self._asked = True

    async def listen(self) -> bool:
        """Listen to the queue where too few do, and stop where too many do; return whether we begin to, since a job may
        have come just before."""
        if not (self.connected and self._may_listen):
            return False
        try:
            _, count = await self._wire.call("PUBSUB", "NUMSUB", self._queue_channel)
        except NoPermissionError:  # a server of one's own may give workers fewer rights
            count = 0
        if monotonic() < self._doubt_until:
            count = 0
        if self.listening:
            if random.random() * count > ENOUGH:  # not all at once
                await self.unlisten()
            return False
        if count >= ENOUGH:
            return False
        self.listening = True
        await self._wire.call("SUBSCRIBE", self._queue_channel)
        return True

    def doubt(self) -> None:
        """A job came of which nobody was notified: those that listen may stand still."""
        self._doubt_until = monotonic() + DOUBT_S

    async def unlisten(self) -> None:
        """Stop listening to the queue, and wake another worker that idles: it may have to listen, and may not know what
        falls due."""
        if not self.connected:
            return
        stop = [("UNSUBSCRIBE", self._queue_channel)] if self.listening else []
        self.listening = False
        with contextlib.suppress(OutOfMemoryError):  # nothing can be enqueued then, and claims ring for what is there
            # At once: a job that was claimed may keep the loop busy from here on.
            await self._wire.calls(*stop, ("ZADD", self._bell, 0, ""))

    async def check(self) -> None:
        """Make sure that we would hear: a connection that leads nowhere tells of nothing, its own end neither."""
        await (self._wire.call("PING") if self._asked else self._ask())

    async def park(self, *command: Field, within_s: float) -> Any:
        """Have Redis run a command once the bell rings, ``wake`` is called or so long is over; return its reply."""
        self._parked = True
        timer = asyncio.get_running_loop().call_later(within_s, self.wake) if within_s < self.park_s else None
        wait = ("BZPOPMIN", self._bell, self._own_bell, self.park_s)
        try:
            bell, reply = await self._wire.calls(wait, command, more_s=self.park_s)
        finally:
            self._parked = False
            if timer:
                timer.cancel()
        self.unprompted = bell is None
        if isinstance(bell, Exception):
            self._may_park = False
            logger.warning("the queue is polled, since no claim can wait for the bell: %s", bell)
        return reply

    @property
    def waits(self) -> bool:
        """Whether something is parked. What its reply came right behind, it has found: all comes in order."""
        return self._parked and self._wire.owed

    def wake(self) -> None:
        """Have Redis run what is parked now."""
        if self.waits:
            self._ring_soon(self._own_bell)

    def _hear_job(self) -> None:
        asyncio.get_running_loop().call_soon(self._ring_or_notify)  # when all is read that came with it

    def _ring_or_notify(self) -> None:
        if self.waits:
            self._ring_soon(self._bell)
        else:
            self._on_job()

    def _ring_soon(self, bell: str) -> None:
        self._to_ring.add(bell)
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring_all())

    async def _ring_all(self) -> None:
        while self._to_ring:
            try:
                await self._ring_bell((self._to_ring.pop(),), ())
            except UNAVAILABLE as error:
                if self.waits:
                    self.close(error)

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; what is parked fails with ``error``."""
        self.connected = self.listening = False
        self._wire.close(error)

    def _prove(self) -> None:
        self._proved = True

    def _hear(self, channel: bytes, event: bytes) -> None:
        if call := self._handlers.get((channel, event)):
            call()

    def _lose(self) -> None:
        if self.connected:
            self.connected = self.listening = False
            self._on_job()  # the worker looks for itself, and starts anew
