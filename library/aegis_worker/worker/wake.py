"""Wakes idle workers: the next claim of an idle worker waits in Redis for the bell of the queue.

The bell is a key, and to ring it is to write this key. The script of our producers rings it, and so does a claim that
leaves due jobs in the queue. Two of the idle workers listen to keyspace events of Redis, which notify them of jobs from
stock producers. Then they ring the bell. So a new job wakes one or two workers, even if many are idle. The workers that
have waited longest come first.
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

PARK_S = 4.0  #: longest wait of a claim in Redis: until then, the claim of a worker that has died may still get a job
LISTENERS = 2  #: workers that listen, because one of them may die
DOUBT_S = 60.0  #: after a job of which nobody was notified


class Listener:
    """Waits for the bell, and listens for new jobs and for requests to abort.

    Redis needs `notify-keyspace-events Kz`. To prove that it sends events, this class writes a key and waits for the
    event. Only idle workers listen: a busy worker polls after each job, and would get a message for each new job.

    Large replies do not use this connection: Redis closes a connection that listens when some MiB wait to be read.

    :param on_job: called when a job was enqueued and this worker has to poll
    :param on_abort: called when an abort was requested
    :param call: runs a command over another connection
    :param ends: also call ``on_job`` when a job ends
    :param park_s: seconds that a parked command waits at most
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
        self._wire = Wire(pool, on_message=self._handle, on_lost=self._connection_lost)
        self._ring_bell = Script(call, "wake")
        self.park_s = park_s
        name = uuid4().hex
        self._bell, self._own_bell = keys.bell(queue_name), keys.own_bell(name)
        self._parked = False
        self._engaged = False
        self.timed_out = False  #: the bell did not ring for the command that was parked last
        self._doubt_until = 0.0
        self._to_ring: set[str] = set()
        self._ringing: asyncio.Task[None] | None = None
        self.connected = False
        self.listening = False  #: to the events of the queue
        self._asked = self._proved = self._may_park = self._may_listen = False
        database = pool.connection_kwargs.get("db", 0)
        self._queue_channel, abort_channel, probe_channel = (
            f"__keyspace@{database}__:{key}".encode() for key in (queue_name, keys.ABORT, keys.probe(name))
        )
        self._channels = (abort_channel, probe_channel)
        self._handlers = {
            (self._queue_channel, b"zadd"): self._job_added,
            (abort_channel, b"zadd"): on_abort,
            (probe_channel, b"zadd"): self._prove,
        }
        if ends:
            self._handlers[self._queue_channel, b"zrem"] = self._job_added
        self._on_job = on_job
        self._probe = keys.probe(name)

    @property
    def proved(self) -> bool:
        """Whether new jobs wake this worker. If not, it has to poll."""
        return self.connected and self._proved and self._may_park

    async def engage(self) -> None:
        """Connect if there is no connection, because the worker is idle."""
        self._engaged = True
        if not self.connected:
            await self._start()

    async def release(self) -> None:
        """Stop listening, because the worker is busy and does not need to be notified."""
        if self._engaged:
            self._engaged = False
            await self.unlisten()

    async def _start(self) -> None:
        """Connect, and ask for the event that proves that Redis sends events."""
        self.connected = True  # before the first call, so that a loss of the connection is noticed
        self._asked, self._proved, self._may_park, self._may_listen = False, False, True, True
        try:
            await asyncio.gather(*(self._wire.call("SUBSCRIBE", channel) for channel in self._channels))
            await self._ask()
        except NoPermissionError as error:
            self._may_listen = False
            logger.warning("the worker polls: it has no right to subscribe to events: %s", error)
        except BaseException:
            self.connected = False
            raise

    async def _ask(self) -> None:
        with contextlib.suppress(OutOfMemoryError):  # then `check` asks again
            await self._wire.call("ZADD", self._probe, 0, "probe")
            await self._wire.call("DEL", self._probe)
            self._asked = True

    async def listen(self) -> bool:
        """Listen to the queue if too few workers do, and stop if too many do.

        Return whether this worker has just begun to listen: then a job may have come before.
        """
        if not (self.connected and self._may_listen):
            return False
        try:
            _, count = await self._wire.call("PUBSUB", "NUMSUB", self._queue_channel)
        except NoPermissionError:  # on another server than ours, workers may have fewer rights
            count = 0
        if monotonic() < self._doubt_until:
            count = 0
        if self.listening:
            if random.random() * count > LISTENERS:  # random, so that not all stop at once
                await self.unlisten()
            return False
        if count >= LISTENERS:
            return False
        self.listening = True
        await self._wire.call("SUBSCRIBE", self._queue_channel)
        return True

    def doubt(self) -> None:
        """Note that nobody was notified of a job: the workers that listen may stand still."""
        self._doubt_until = monotonic() + DOUBT_S

    async def unlisten(self) -> None:
        """Stop listening to the queue, and wake another idle worker.

        That worker may have to listen instead, and may not know about jobs that will be due.
        """
        if not self.connected:
            return
        stop = [("UNSUBSCRIBE", self._queue_channel)] if self.listening else []
        self.listening = False
        with contextlib.suppress(OutOfMemoryError):  # then no new jobs come, and claims ring the bell for the others
            # In one call, because a claimed job may block the event loop from now on.
            await self._wire.calls(*stop, ("ZADD", self._bell, 0, ""))

    async def check(self) -> None:
        """Check the connection: if the other end has vanished, no event comes, and no error either."""
        await (self._wire.call("PING") if self._asked else self._ask())

    async def park(self, *command: Field, within_s: float) -> Any:
        """Run a command when the bell rings, ``wake`` is called or ``within_s`` has passed. Return its reply."""
        self._parked = True
        timer = asyncio.get_running_loop().call_later(within_s, self.wake) if within_s < self.park_s else None
        wait = ("BZPOPMIN", self._bell, self._own_bell, self.park_s)
        try:
            bell, reply = await self._wire.calls(wait, command, more_s=self.park_s)
        finally:
            self._parked = False
            if timer:
                timer.cancel()
        self.timed_out = bell is None
        if isinstance(bell, Exception):
            self._may_park = False
            logger.warning("the worker polls: a claim cannot wait for the bell: %s", bell)
        return reply

    @property
    def waits(self) -> bool:
        """Whether a command is parked. If its reply came with an event, the command has found that job already."""
        return self._parked and self._wire.pending

    def wake(self) -> None:
        """Make Redis run the parked command now."""
        if self.waits:
            self._ring_soon(self._own_bell)

    def _job_added(self) -> None:
        asyncio.get_running_loop().call_soon(self._ring_or_notify)  # after a reply that came with the event

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
        """Close the connection. A parked command fails with ``error``."""
        self.connected = self.listening = False
        self._wire.close(error)

    def _prove(self) -> None:
        self._proved = True

    def _handle(self, channel: bytes, event: bytes) -> None:
        if call := self._handlers.get((channel, event)):
            call()

    def _connection_lost(self) -> None:
        if self.connected:
            self.connected = self.listening = False
            self._on_job()  # the worker polls, and connects again
