"""A TCP proxy between a worker and Redis, for what a network does: it is slow, falls silent, or cuts a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: RST instead of FIN
LEAST = 8  #: bytes; what is shorter says nothing that matters: +OK, :1

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Forwards what comes to ``port`` to another port of this host, in this process's event loop."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.latency_s = 0.0
        self.cuts = {"request": 0, "reply": 0}  #: how many are to be cut in their middle, from now on
        self.cut = 0  #: how many were
        self.target = target  #: of connections that are made from now on
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def cut_all(self) -> None:
        for link in self._links:
            link.cancel()

    def freeze(self) -> None:
        """Let connections stand, and be made, with nothing passing; what is on its way arrives after ``thaw``."""
        self._flows.clear()

    def thaw(self, *, old: bool = True) -> None:
        """Without ``old``, the connections that there are stay as they are for ever, half open."""
        if not old:
            self._flows = asyncio.Event()
        self._flows.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link((reader, writer)))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, client: Streams) -> None:
        ends = [client[1]]
        try:
            server = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(server[1])
            flows = self._flows
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump("request", client[0], server[1], flows))
                pumps.create_task(self._pump("reply", server[0], client[1], flows))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one end is gone, so the other goes as well
        finally:
            for writer in ends:
                writer.close()

    async def _pump(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 16):
            await flows.wait()
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if self.cuts[direction] and len(data) >= LEAST:
                self.cuts[direction] -= 1
                self.cut += 1
                writer.write(data[: len(data) // 2])
                await asyncio.sleep(0.01)  # or the reset would overtake it
                self._reset(writer)
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # closed at that end

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()
