"""Requests to hosts that a producer names, to real servers on this host, which is what they must not reach."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from app.components.worker.tasks import system, web
from app.components.worker.tasks.system import check_url
from ops.secrets import certificates

Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that answer with the same bytes; ``asked`` has what each was asked for."""
    servers = []

    async def start(answer: bytes, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Any:
        asked: list[bytes] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer + b"\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, address, 0, ssl=tls)
        servers.append(server)
        return server.sockets[0].getsockname()[1], asked

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def first_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes 127.0.0.1 for an address out there; 127.0.0.2 is none still."""
    monkeypatch.setattr(web, "is_public", lambda address: str(address) == "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ],
)
async def test_what_is_not_public_is_not_asked(serve: Serve, host: str) -> None:
    port, asked = await serve(b"HTTP/1.1 200 OK")
    with pytest.raises(ValueError, match="is not public: WORKER_CHECK_URL_PRIVATE allows it"):
        await check_url({}, f"http://me:geheim@{host}:{port}/")
    assert asked == []


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_what_is_public(address: str) -> None:
    assert web.is_public(ip_address(address))


@pytest.mark.usefixtures("first_is_public")
async def test_a_redirect_leads_nowhere_else(serve: Serve) -> None:
    inner, asked = await serve(b"HTTP/1.1 200 OK", "127.0.0.2")
    outer, _ = await serve(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:{inner}/".encode())
    with pytest.raises(ValueError, match=r"127\.0\.0\.2 is 127\.0\.0\.2, which is not public"):
        await check_url({}, f"http://127.0.0.1:{outer}/")
    assert asked == []


@pytest.mark.usefixtures("first_is_public")
async def test_the_host_is_asked_by_its_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port, asked = await serve(b"HTTP/1.1 200 OK")
    lookups = []
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def counted(host: str, *args: Any, **options: Any) -> Any:
        lookups.append(host)
        return await look_up("127.0.0.1" if host == "public.test" else host, *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    assert (await check_url({}, f"http://public.test:{port}/"))["status"] == 200
    assert f"Host: public.test:{port}\r\n".encode() in asked[0]
    assert lookups.count("public.test") == 1


async def test_a_certificate_is_checked_by_the_hosts_name(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.ensure(tmp_path, "test", [], certificates.command(tmp_path, None), now=time.time())
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "redis_server.crt", tmp_path / "redis_server.key")
    trusting = ssl.create_default_context(cafile=tmp_path / "redis_ca.crt")
    monkeypatch.setattr(web, "_context", lambda: trusting)
    monkeypatch.setattr(web, "is_public", lambda address: True)
    port, asked = await serve(b"HTTP/1.1 200 OK", "127.0.0.1", tls)
    assert (await check_url({}, f"https://localhost:{port}/"))["status"] == 200
    with pytest.raises(RuntimeError, match="certificate verify failed"):
        await check_url({}, f"https://0x7f000001:{port}/")
    assert len(asked) == 1


@pytest.mark.usefixtures("first_is_public")
async def test_a_check_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CHECK_WITHIN_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        with pytest.raises(RuntimeError, match="does not answer: TimeoutError"):
            await check_url({}, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
