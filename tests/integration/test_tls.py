"""TLS as a client sees it: who is let in, what others are told. The embedded Valkey has none: a relay speaks it.

What Redis itself does is in tests/stack/test_tls.py.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from arq.connections import ArqRedis, RedisSettings
from redis.exceptions import ConnectionError, TimeoutError

from aegis_worker.redis.pool import create_pool, explain
from aegis_worker.settings import Settings
from ops.secrets import certificates
from ops.secrets.certificates import CA, CLIENT, SERVER
from tests.conftest import PASSWORD
from tests.integration.test_runtime import Relay

_SIGN_IN_THE_PAST = """\
[ca]
default_ca = here
[here]
database = database
new_certs_dir = .
policy = any
default_md = sha256
rand_serial = yes
copy_extensions = copyall
[any]
commonName = supplied
"""


def make(folder: Path, *names: str) -> Path:
    """Certificates of a CA of their own."""
    folder.mkdir()
    certificates.ensure(folder, "test", names, certificates.command(folder, None), now=time.time())
    return folder


def expire(folder: Path, name: str) -> None:
    """Have the CA sign a certificate again, for a day that is over."""
    (folder / "database").touch()
    (folder / "config").write_text(_SIGN_IN_THE_PAST)
    of = ["-in", f"{name}.crt", "-signkey", f"{name}.key"]
    ca = ["-cert", f"{CA}.crt", "-keyfile", f"{CA}.key"]
    day = ["-startdate", "20250101000000Z", "-enddate", "20250102000000Z"]
    request = ["x509", "-x509toreq", "-copy_extensions", "copyall", *of, "-out", "request"]
    sign = ["ca", "-batch", "-config", "config", "-notext", *ca, *day, "-in", "request", "-out", "expired"]
    for command in (request, sign):
        done = subprocess.run(["openssl", *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (folder / "expired").replace(folder / f"{name}.crt")


class TLSRelay(Relay):
    """The server, by TLS, with the certificates of a folder."""

    def __init__(self, target: int, folder: Path, clients: ssl.VerifyMode) -> None:
        super().__init__(target)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.verify_mode = clients
        self.read(folder)

    def read(self, folder: Path) -> None:
        self.context.load_cert_chain(folder / f"{SERVER}.crt", folder / f"{SERVER}.key")
        self.context.load_verify_locations(folder / f"{CA}.crt")

    async def mend(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self.context)


Serve = Callable[..., Awaitable[TLSRelay]]


@pytest.fixture
async def serve(redis: ArqRedis, redis_server: RedisSettings) -> AsyncIterator[Serve]:
    relays: list[TLSRelay] = []

    async def serve(folder: Path, clients: ssl.VerifyMode = ssl.CERT_NONE) -> TLSRelay:
        relay = TLSRelay(redis_server.port, folder, clients)
        await relay.mend()
        relays.append(relay)
        return relay

    yield serve
    for relay in relays:
        relay.cut()


def settings(port: int, folder: Path, *, host: str = "localhost", client: bool = False, tls: bool = True) -> Settings:
    shown = {"REDIS_SSL_CERTFILE": folder / f"{CLIENT}.crt", "REDIS_SSL_KEYFILE": folder / f"{CLIENT}.key"}
    return Settings(
        _env_file=None,
        REDIS_URL=f"redis://{host}:{port}",
        REDIS_PASSWORD=PASSWORD,
        REDIS_CONNECTION_TIMEOUT=1,
        REDIS_SSL=tls,
        REDIS_SSL_CA_CERTS=folder / f"{CA}.crt",
        **(shown if client else {}),
    )


async def said(config: Settings) -> str:
    """What is said of a connection that fails."""
    pool = create_pool(config)
    try:
        with pytest.raises((ConnectionError, TimeoutError)) as caught:
            await pool.ping()
    finally:
        await pool.aclose()
    text = explain(caught.value, config)
    assert "\n" not in text
    assert PASSWORD not in text
    return text


async def ping(config: Settings) -> bool:
    pool = create_pool(config)
    try:
        return bool(await pool.ping())
    finally:
        await pool.aclose()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_the_right_ca_lets_in(serve: Serve, tmp_path: Path, host: str) -> None:
    folder = make(tmp_path / "a")
    relay = await serve(folder)
    assert await ping(settings(relay.port, folder, host=host))


async def test_another_ca(serve: Serve, tmp_path: Path) -> None:
    relay = await serve(make(tmp_path / "a"))
    other = settings(relay.port, make(tmp_path / "b"))
    assert "its certificate is signed by a CA that is not in REDIS_SSL_CA_CERTS" in await said(other)


async def test_of_the_cas_only_the_one_that_is_set_counts(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "system")
    relay = await serve(folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / f"{CA}.crt"))
    assert await ping(settings(relay.port, folder))
    other = settings(relay.port, make(tmp_path / "b"))
    assert "its certificate is signed by a CA that is not in REDIS_SSL_CA_CERTS" in await said(other)


async def test_connections_share_a_context(serve: Serve, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    pool = create_pool(settings((await serve(folder)).port, folder)).connection_pool
    made = await asyncio.gather(*(pool.get_connection() for _ in range(5)))
    assert len({id(each._writer.get_extra_info("ssl_object").context) for each in made}) == 1
    for each in made:
        await each.disconnect()


async def test_a_certificate_that_has_expired(serve: Serve, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    expire(folder, SERVER)
    relay = await serve(folder)
    assert "its certificate has expired: `make certs` renews it" in await said(settings(relay.port, folder))
    certificates.ensure(folder, "test", (), certificates.command(folder, None), now=time.time())
    relay.read(folder)
    assert await ping(settings(relay.port, folder))


async def test_a_name_that_the_certificate_does_not_have(serve: Serve, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    relay = await serve(folder)
    text = await said(settings(relay.port, folder, host="127.1"))
    assert "its certificate is not for 127.1: add the name to REDIS_TLS_NAMES, then `make certs`" in text


async def test_a_server_without_tls(redis_server: RedisSettings, tmp_path: Path) -> None:
    text = await said(settings(redis_server.port, make(tmp_path / "a")))
    # It waits for a line's end, which may or may not be in what TLS begins with.
    assert "it does not speak TLS: check REDIS_SSL" in text or "cannot be reached by TLS" in text


async def test_a_client_without_tls(serve: Serve, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    relay = await serve(folder)
    assert "cannot be reached" in await said(settings(relay.port, folder, tls=False))


async def test_a_clients_certificate_where_one_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    relay = await serve(folder, ssl.CERT_REQUIRED)
    assert await ping(settings(relay.port, folder, client=True))
    # The connection may be cut before it is said why.
    text = await said(settings(relay.port, folder))
    assert "check REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE" in text or "cannot be reached by TLS" in text


async def test_a_client_that_lives_long_takes_up_what_was_renewed(serve: Serve, tmp_path: Path) -> None:
    """Another CA, all of its certificates, and each connection cut: as bad as it gets."""
    folder = make(tmp_path / "a")
    relay = await serve(folder, ssl.CERT_REQUIRED)
    pool = create_pool(settings(relay.port, folder, client=True))
    assert await pool.ping()

    shutil.copytree(make(tmp_path / "b"), folder, dirs_exist_ok=True)
    relay.cut()
    relay.context = TLSRelay(relay.target, folder, ssl.CERT_REQUIRED).context
    await relay.mend()
    with suppress(ConnectionError):
        await pool.ping()  # the connection that was cut
    assert await pool.ping()
    await pool.aclose()
