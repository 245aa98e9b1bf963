"""A fast connection to Redis: calls are pipelined, and replies are parsed as they arrive.

For each command, an asyncio client of redis-py borrows a connection from its pool, checks it, and sends and reads in
tasks with time-outs. This takes longer than Redis needs for the command. Here redis-py only makes the connection, with
login, TLS, database and retries. Then this module uses its transport directly.
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

NOTHING = object()  #: the parser returns it while a reply is not complete

Field = bytes | str | int | float
Command = Sequence[Field]
OnMessage = Callable[[bytes, bytes], None]  #: gets a channel and a message


class Wire:
    """Calls Redis over one connection. It connects when it is used, and again after the connection was lost.

    The connection uses RESP3, so it also receives messages of channels. From the reply to ``SUBSCRIBE`` until
    ``on_lost`` is called, no message is missed. Each channel needs its own call of ``SUBSCRIBE``.

    :param pool: its options are used to connect; its ``socket_timeout``, or 10 s, limits the wait for a reply
    :param timeout_s: a shorter limit
    :param on_message: called with each message
    :param on_lost: called when the connection breaks
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout_s: float = inf,
        on_message: OnMessage | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._connection_class = pool.connection_class
        given = pool.connection_kwargs
        self._timeout_s = min(timeout_s, given.get("socket_timeout") or connection.SOCKET_TIMEOUT_S)
        self._options = given | {
            "protocol": 3,
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": min(timeout_s, given.get("socket_connect_timeout") or self._timeout_s),
            "health_check_interval": 0,  # else redis-py sends a PING before the login
        }
        self._on_message = on_message
        self._on_lost = on_lost
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    @property
    def pending(self) -> bool:
        """Whether a command was sent and its reply has not come yet."""
        return self._link is not None and self._link.pending

    async def call(self, *command: Field) -> Any:
        """Return the reply of Redis to a command. Raises redis-py's errors."""
        (reply,) = await self.calls(command)
        return reply

    async def calls(self, *commands: Command, more_s: float = 0) -> list[Any]:
        """Send commands together, and return their replies.

        An error of the last command is raised. Errors of the other commands are returned as their replies.

        :param more_s: seconds that are added to the usual time limit
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
        return _Link(made, self._on_message, self._on_lost)

    def close(self, error: Exception | None = None) -> None:
        """Close the connection, if there is one. Pending calls fail with ``error``. ``on_lost`` is not called."""
        if self._link:
            self._link.close(error or ConnectionError("we closed the connection"))


class _Link(asyncio.Protocol):
    """An open connection. When it is closed, ``error`` says why."""

    def __init__(
        self,
        made: AbstractConnection,
        on_message: OnMessage | None,
        on_lost: Callable[[], None] | None,
    ) -> None:
        self.error: Exception | None = None
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._replies: deque[asyncio.Future[Any]] = deque()  # of the commands that were sent
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=NOTHING
        )
        reader = cast(asyncio.StreamReader, made._reader)
        self._writer = cast(
            asyncio.StreamWriter, made._writer
        )  # kept, because it closes its transport when it is deleted
        made._reader = made._writer = None
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        if reader.at_eof():  # asyncio reports the end only once
            self.connection_lost(None)

    @property
    def pending(self) -> bool:
        return bool(self._replies)

    async def calls(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        if self._transport.is_closing():
            self.connection_lost(None)
        if self.error:
            raise self.error
        packed = b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]
        replies = [
            self._loop.create_future() for _ in commands
        ]  # not before: a command that cannot be packed gets no reply
        self._replies += replies
        self._transport.write(packed)
        timer = self._loop.call_later(within_s, self._end, TimeoutError("no reply from Redis"))
        *firsts, last = replies
        try:
            reply = await last
        finally:
            timer.cancel()
            for first in firsts:
                first.cancel()  # if the call was cancelled: else asyncio logs errors that nobody reads
            errors = [None if first.cancelled() else first.exception() for first in firsts]
        return [*(error or first.result() for error, first in zip(errors, firsts, strict=True)), reply]

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not NOTHING:
                if type(reply) is hiredis.PushNotification and reply[0] == b"message":
                    if self._on_message:
                        self._on_message(reply[1], reply[2])
                else:  # the reply to SUBSCRIBE is a push, too
                    self._answer(self._replies.popleft(), reply)
                    if isinstance(reply, ConnectionError | ReadOnlyError):
                        self._end(reply)  # another connection may lead to a server that accepts the command
        except (InvalidResponse, IndexError) as error:
            self._end(InvalidResponse(f"Redis sent an invalid reply: {error}"))

    @staticmethod
    def _answer(waiting: asyncio.Future[Any], reply: Any) -> None:
        if waiting.done():  # the caller was cancelled
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
            if self._on_lost:
                self._on_lost()

    def close(self, error: Exception) -> None:
        self.error = self.error or error
        self._transport.abort()
        while self._replies:
            self._answer(self._replies.popleft(), self.error)
