"""A connection that is quick: replies are parsed as they arrive, and calls follow each other without waiting.

redis-py's asyncio clients borrow a connection for each command, look whether it lives, send in a task with a time-out
and read from a stream with another, which takes longer than Redis does. Here they only make the connection: login,
TLS, database and retries are theirs, then its transport speaks to us.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, cast

import hiredis
from redis._parsers import BaseParser
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, InvalidResponse, ReadOnlyError, RedisError, TimeoutError

from aegis_worker.redis import connection

NOTHING = object()  #: what the parser gives while a reply is not whole

Field = bytes | str | int | float
Command = Sequence[Field]
Heard = Callable[[bytes, bytes], None]  #: given a channel, and a message


class Wire:
    """Calls Redis over one connection, which is made when it is needed, and again after it was lost.

    As RESP3 does, it carries messages of channels among the replies: after ``SUBSCRIBE`` has been answered, none is
    missed until ``lost`` is called. Each channel has to be subscribed to by a call of its own.

    :param pool: how to connect; its ``socket_timeout``, or 10 s, is how long a reply may take
    :param timeout_s: if that is to be less
    :param heard: called with each message
    :param lost: called when the connection breaks
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout_s: float = inf,
        heard: Heard | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._connection_class = pool.connection_class
        given = pool.connection_kwargs
        self._timeout_s = min(timeout_s, given.get("socket_timeout") or connection.SOCKET_TIMEOUT_S)
        self._options = given | {
            "protocol": 3,
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": min(timeout_s, given.get("socket_connect_timeout") or self._timeout_s),
            "health_check_interval": 0,  # redis-py would ask for its first PING before it has logged in
        }
        self._heard = heard
        self._lost = lost
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    @property
    def owed(self) -> bool:
        """Whether a reply is still to come."""
        return self._link is not None and self._link.owed

    async def call(self, *command: Field) -> Any:
        """Return Redis's reply to a command. Raises what redis-py raises."""
        (reply,) = await self.calls(command)
        return reply

    async def calls(self, *commands: Command, more_s: float = 0) -> list[Any]:
        """Send commands in one breath; return the replies. Raises what the last one's is, others' errors are returned.

        :param more_s: how much longer than usual that may take
        """
        link = self._link
        if link is None or link.error:
            async with self._connecting:
                link = self._link
                if link is None or link.error:
                    link = self._link = await self._connect()
        return await link.calls(commands, self._timeout_s + more_s)

    async def _connect(self) -> _Link:
        made = self._connection_class(**self._options)
        await made.connect()  # type: ignore[no-untyped-call]
        return _Link(made, self._heard, self._lost)

    def close(self, error: Exception | None = None) -> None:
        """Close the connection, if there is one; what is under way fails with ``error``, and ``lost`` is not called."""
        if self._link:
            self._link.close(error or ConnectionError("closed by us"))


class _Link(asyncio.Protocol):
    """A connection that was made; ``error`` says why it is over."""

    def __init__(
        self,
        made: AbstractConnection,
        heard: Heard | None,
        lost: Callable[[], None] | None,
    ) -> None:
        self.error: Exception | None = None
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._replies: deque[asyncio.Future[Any]] = deque()  # that are to come
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=NOTHING
        )
        reader = cast(asyncio.StreamReader, made._reader)
        self._writer = cast(asyncio.StreamWriter, made._writer)  # which closes its transport when it goes
        made._reader = made._writer = None
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        if reader.at_eof():  # nobody will be told a second time
            self.connection_lost(None)

    @property
    def owed(self) -> bool:
        return bool(self._replies)

    async def calls(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        if self._transport.is_closing():
            self.connection_lost(None)
        if self.error:
            raise self.error
        packed = b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]
        replies = [self._loop.create_future() for _ in commands]  # not before: what cannot be packed has no reply
        self._replies += replies
        self._transport.write(packed)
        timer = self._loop.call_later(within_s, self._end, TimeoutError("no reply from Redis"))
        *firsts, last = replies
        try:
            reply = await last
        finally:
            timer.cancel()
            for first in firsts:
                first.cancel()  # where the call was: an error that comes later is nobody's
            errors = [None if first.cancelled() else first.exception() for first in firsts]
        return [*(error or first.result() for error, first in zip(errors, firsts, strict=True)), reply]

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not NOTHING:
                if type(reply) is hiredis.PushNotification and reply[0] == b"message":
                    if self._heard:
                        self._heard(reply[1], reply[2])
                else:  # to SUBSCRIBE, it is a push as well
                    self._answer(self._replies.popleft(), reply)
                    if isinstance(reply, ConnectionError | ReadOnlyError):
                        self._end(reply)  # the next connection may lead to a server that can
        except (InvalidResponse, IndexError) as error:
            self._end(InvalidResponse(f"Redis sent what is no reply: {error}"))

    @staticmethod
    def _answer(waiting: asyncio.Future[Any], reply: Any) -> None:
        if waiting.done():  # whoever asked was cancelled
            return
        if isinstance(reply, Exception):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ConnectionError(str(error or "Redis closed the connection")))

    def _end(self, error: RedisError) -> None:
        if self.error is None:
            self.close(error)
            if self._lost:
                self._lost()

    def close(self, error: Exception) -> None:
        self.error = self.error or error
        self._transport.abort()
        while self._replies:
            self._answer(self._replies.popleft(), self.error)
