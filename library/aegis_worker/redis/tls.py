"""TLS to Redis: the context of its connections, and what its errors mean."""

from __future__ import annotations

import os
import ssl
from typing import Any

from arq.connections import RedisSettings
from redis.asyncio import SSLConnection

_EXPIRED = (10,)  #: OpenSSL's numbers for what is wrong with a certificate
_UNKNOWN_CA = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 64)


class Contexts:
    """Gives the context to connect with: the same one until a certificate is renewed.

    redis-py makes one for each connection, and has each read the system's CAs as well. That is 17 ms that the loop
    stands still, a hundred times over when a hundred jobs want a connection at once.

    :param where: where it has a CA, no other is trusted, the system's neither
    """

    def __init__(self, where: RedisSettings) -> None:
        self._where = where
        self._made: tuple[object, ssl.SSLContext] | None = None

    def get(self) -> ssl.SSLContext:
        """Return it; raises ``OSError`` where a file cannot be read, or is no certificate."""
        where = self._where
        files = (where.ssl_ca_certs, where.ssl_certfile, where.ssl_keyfile)
        state = [(status.st_ino, status.st_mtime_ns) for status in map(os.stat, filter(None, files))]
        if not self._made or self._made[0] != state:
            self._made = state, self._make()
        return self._made[1]

    def _make(self) -> ssl.SSLContext:
        where = self._where
        context = ssl.create_default_context(cafile=where.ssl_ca_certs)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = where.ssl_check_hostname
        context.verify_mode = ssl.VerifyMode[f"CERT_{where.ssl_cert_reqs.upper()}"]
        if where.ssl_certfile:
            context.load_cert_chain(where.ssl_certfile, where.ssl_keyfile)
        return context


class TLSConnection(SSLConnection):
    """redis-py's connection, with one of our contexts."""

    def __init__(self, *, contexts: Contexts, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = contexts  # type: ignore[assignment]  # of which redis-py calls `get` alone


def find_error(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS said, somewhere below the error that the client makes of it."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def explain(error: ssl.SSLError, host: str) -> str:
    """Say in a line what is wrong between us and the server, and what to look at."""
    code = getattr(error, "verify_code", None)
    if code in _EXPIRED:
        return "its certificate has expired: `make certs` renews it"
    if code in _UNKNOWN_CA:
        return "its certificate is of a CA that is not in REDIS_SSL_CA_CERTS (secrets/<ENV>/redis_ca.crt)"
    if code in _OTHER_NAME:
        return f"its certificate is not for {host}: add the name to REDIS_TLS_NAMES, then `make certs`"
    if error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS: check REDIS_SSL"
    return "it refuses us by TLS: check REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE"
