"""Requests to hosts that a producer names. Only public addresses: else a job could reach what its producer cannot."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx

TIMEOUT_S = 30


def client() -> httpx.AsyncClient:
    """Return a client that follows redirects. It raises ``ValueError`` if a host has an address that is not public."""
    return httpx.AsyncClient(transport=_Public(verify=_context()), timeout=TIMEOUT_S, follow_redirects=True)


@cache
def _context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is public: not of this host, a private network, a cloud's metadata or a multicast."""
    if isinstance(address, IPv6Address) and (inner := address.ipv4_mapped or address.sixtofour):
        return is_public(inner)
    return address.is_global and not address.is_multicast


class _Public(httpx.AsyncHTTPTransport):
    """Resolves a host once, and connects to the addresses that were checked: a second answer could differ."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        addresses = dict.fromkeys(ip_address(where[0]) for *_, where in found)
        if closed := [str(address) for address in addresses if not is_public(address)]:
            raise ValueError(f"{host} is {', '.join(closed)}, which is not public: WORKER_CHECK_URL_PRIVATE allows it")
        *others, last = addresses
        for address in others:
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await super().handle_async_request(_sent_to(address, request))
        return await super().handle_async_request(_sent_to(last, request))


def _sent_to(address: IPv4Address | IPv6Address, request: httpx.Request) -> httpx.Request:
    """Return the request with an address in its URL. The header and TLS still use the name of the host."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode()},
    )
