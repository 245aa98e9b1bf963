"""TLS to Redis: the SSL context of the connections, and explanations of TLS errors."""

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
    """Gives the SSL context for connections. It is the same one until a certificate is renewed.

    redis-py makes a context for each connection, and each one reads the CAs of the system. This blocks the event loop
    for 17 ms, and a hundred times as long when a hundred jobs connect at once.

    :param where: the settings; if they name a CA, only that CA is trusted, and not those of the system
    """

    def __init__(self, where: RedisSettings) -> None:
        self._where = where
        self._made: tuple[object, ssl.SSLContext] | None = None

    def get(self) -> ssl.SSLContext:
        """Return the context. Raises ``OSError`` if a file cannot be read, or is not a certificate or a key."""
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
    """A TLS connection of redis-py that uses ``Contexts``."""

    def __init__(self, *, contexts: Contexts, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = contexts  # type: ignore[assignment]  # redis-py calls only its `get`


def find_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the TLS error among the causes of an error, or None."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def explain(error: ssl.SSLError, host: str) -> str:
    """Return a text that says what is wrong with the TLS connection, and what to check."""
    code = getattr(error, "verify_code", None)
    if code in _EXPIRED:
        return "its certificate has expired: `make certs` renews it"
    if code in _UNKNOWN_CA:
        return "its certificate is signed by a CA that is not in REDIS_SSL_CA_CERTS (secrets/<ENV>/redis_ca.crt)"
    if code in _OTHER_NAME:
        return f"its certificate is not for {host}: add the name to REDIS_TLS_NAMES, then `make certs`"
    if error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS: check REDIS_SSL"
    return "it rejects our TLS connection: check REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE"
