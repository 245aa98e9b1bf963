"""The worker's own connection: against a real server, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError, InvalidResponse, ResponseError, TimeoutError

from aegis_worker.redis.wire import Wire
from tests.conftest import eventually

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def wire(redis: ArqRedis) -> AsyncIterator[Wire]:
    wire = Wire(redis.connection_pool)
    yield wire
    wire.close()


@asynccontextmanager
async def served(answer: Answer, **options: float) -> AsyncIterator[tuple[Wire, list[str]]]:
    """A wire to a server that greets as Redis does, and then does as it likes; and what the wire has lost."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"HELLO")
        writer.write(b"%1\r\n+proto\r\n:3\r\n")
        await reader.readuntil(b"LIB-VER")
        writer.write(b"+OK\r\n+OK\r\n")
        with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()

    lost: list[str] = []
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        wire = Wire(ConnectionPool(host=host, port=port, **options), on_lost=lambda: lost.append("lost"))
        yield wire, lost
        wire.close()


async def test_calls_that_follow_each_other_get_their_own_replies(wire: Wire) -> None:
    replies = await asyncio.gather(*(wire.call("ECHO", number) for number in range(100)))
    assert replies == [str(number).encode() for number in range(100)]
    assert await wire.call("ECHO", b"\xff" * 1_000_000) == b"\xff" * 1_000_000


async def test_an_error_is_raised_and_the_next_reply_is_right(wire: Wire) -> None:
    wrong, right = await asyncio.gather(wire.call("NONSENSE"), wire.call("ECHO", 1), return_exceptions=True)
    assert isinstance(wrong, ResponseError)
    assert right == b"1"


async def test_what_cannot_be_sent_takes_no_reply_of_another(wire: Wire) -> None:
    await wire.call("PING")
    with pytest.raises(TypeError):
        await wire.call("ECHO", object())  # type: ignore[arg-type]
    async with asyncio.timeout(1):
        assert await wire.call("ECHO", 1) == b"1"
        assert await wire.call("ECHO", 2) == b"2"


async def test_a_command_that_waits_behind_another_gets_its_own_reply(wire: Wire, redis: ArqRedis) -> None:
    waiting = asyncio.create_task(wire.calls(("BLPOP", "list", 5), ("ECHO", "mine")))
    await eventually(lambda: wire.pending)
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await redis.rpush("list", "not mine")
    assert await waiting == [[b"list", b"not mine"], b"mine"]
    assert not wire.pending
    assert await wire.call("ECHO", "next") == b"next"


async def test_of_several_replies_only_the_last_ones_error_is_raised(wire: Wire, redis: ArqRedis) -> None:
    await redis.set("text", "no list")
    error, reply = await wire.calls(("BLPOP", "text", 5), ("ECHO", "mine"))
    assert isinstance(error, ResponseError)
    assert reply == b"mine"
    with pytest.raises(ResponseError, match="NONSENSE"):
        await wire.calls(("GET", "nothing"), ("NONSENSE",))
    assert await wire.call("ECHO", "next") == b"next"


async def test_calls_may_have_longer_than_usual() -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING")
        await asyncio.sleep(0.3)
        writer.write(b"_\r\n+PONG\r\n")
        await reader.read()

    async with served(late, socket_timeout=0.2) as (wire, _):
        assert await wire.calls(("BLPOP", "list", 0.3), ("PING",), more_s=0.3) == [None, b"PONG"]


async def test_the_reply_to_a_call_that_was_cancelled_is_nobodys(wire: Wire) -> None:
    await wire.call("PING")
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.05):
            await wire.call("BLPOP", "nothing", 0.2)
    assert await wire.call("ECHO", "mine") == b"mine"


async def test_messages_come_in_order_among_replies(redis: ArqRedis) -> None:
    seen: list[object] = []
    wire = Wire(redis.connection_pool, on_message=lambda channel, message: seen.append((channel, message)))

    async def echo(value: str) -> None:
        seen.append(await wire.call("ECHO", value))

    await wire.call("SUBSCRIBE", "news")
    await redis.publish("news", "first")
    await echo("reply")
    await wire.call("UNSUBSCRIBE", "news")
    await redis.publish("news", "unheard")
    await echo("another")
    assert seen == [(b"news", b"first"), b"reply", b"another"]
    wire.close()


async def test_a_connection_that_was_lost_is_made_again(redis: ArqRedis) -> None:
    lost: list[str] = []
    wire = Wire(redis.connection_pool, on_lost=lambda: lost.append("lost"))
    number = await wire.call("CLIENT", "ID")
    waiting = asyncio.gather(wire.call("BLPOP", "nothing", 0), wire.call("PING"), return_exceptions=True)
    await asyncio.sleep(0.05)
    await redis.client_kill_filter(_id=number)
    assert [type(error) for error in await waiting] == [ConnectionError, ConnectionError]
    assert lost == ["lost"]
    assert await wire.call("CLIENT", "ID") > number
    wire.close()
    assert lost == ["lost"]  # by us: that is nothing to be told of


async def test_no_reply_ends_the_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with served(silent, socket_timeout=0.2) as (wire, lost):
        with pytest.raises(TimeoutError, match="no reply from Redis"):
            await wire.call("PING")
        assert lost == ["lost"]


@pytest.mark.parametrize("sent", [b"what?\r\n", b"$3\r\nabc\r\n:1\r\n", b"*x\r\n"], ids=["text", "one more", "size"])
async def test_what_is_no_reply_ends_the_connection(sent: bytes) -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING")
        writer.write(sent)
        await reader.read()

    async with served(wrong, socket_timeout=5) as (wire, lost):
        with contextlib.suppress(InvalidResponse):  # of the second case, the first reply is one
            await wire.call("PING")
        await eventually(lambda: lost == ["lost"])


async def test_a_server_that_hangs_up_after_the_greeting_is_noticed() -> None:
    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with served(gone, socket_timeout=5) as (wire, _):
        with pytest.raises(ConnectionError):
            await wire.call("PING")


async def test_a_server_that_cannot_serve_is_left_for_the_next() -> None:
    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"INCR")
        writer.write(b"-READONLY You can't write against a read only replica.\r\n")
        await reader.read()

    async with served(replica, socket_timeout=5) as (wire, lost):
        for number in (1, 2):
            with pytest.raises(ResponseError, match="read only replica"):
                await wire.call("INCR", "x")
            assert lost == ["lost"] * number
