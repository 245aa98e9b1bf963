"""TLS as Redis itself serves it, with clients' certificates asked for, and certificates that change while jobs run.

The stack is dev's, so that the host is a client as well; prod's own tests run by TLS, without clients' certificates.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from aegis_worker.payload import Serializer
from tests.conftest import ROOT
from tests.stack.conftest import MakeStack, Stack, inspect

JOBS = 300


@pytest.fixture(scope="module")
def tls(make_stack: MakeStack) -> Stack:
    layers = "compose/base.yml:compose/dev.yml:compose/tls.yml"
    stack = make_stack("dev", COMPOSE_FILE=layers, REDIS_SSL="true", REDIS_TLS_CLIENTS="yes")
    stack.make("up")
    return stack


def secret(stack: Stack, name: str) -> Path:
    return stack.folder / "secrets" / "dev" / name


def context(stack: Stack, *, client: bool = True) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=secret(stack, "redis_ca.crt"))
    if client:
        made.load_cert_chain(secret(stack, "redis_client.crt"), secret(stack, "redis_client.key"))
    return made


def serial(stack: Stack) -> str:
    """The number of the certificate that Redis shows."""
    with (
        socket.create_connection(("127.0.0.1", stack.port), 5) as plain,
        context(stack).wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        shown = secured.getpeercert()
        assert shown is not None
        return str(shown["serialNumber"])


def answer(stack: Stack, over: ssl.SSLContext) -> bytes:
    """What Redis answers, before a login, to who connects like this."""
    with (
        socket.create_connection(("127.0.0.1", stack.port), 5) as plain,
        over.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"PING\r\n")
        return secured.recv(100)


async def producer(stack: Stack) -> ArqRedis:
    """Another application, with arq and a copy of the serializer."""
    serializer = Serializer()
    return await create_pool(
        RedisSettings(
            port=stack.port,
            username="producer",
            password=secret(stack, "redis_producer_password").read_text(),
            ssl=True,
            ssl_ca_certs=str(secret(stack, "redis_ca.crt")),
            ssl_certfile=str(secret(stack, "redis_client.crt")),
            ssl_keyfile=str(secret(stack, "redis_client.key")),
            ssl_check_hostname=True,
        ),
        default_queue_name="arq:queue:load_test",
        job_serializer=serializer.dumps,
        job_deserializer=serializer.loads,
    )


def test_tls_with_a_clients_certificate_is_the_way_in(tls: Stack) -> None:
    assert answer(tls, context(tls)).startswith(b"-NOAUTH")


def test_there_is_no_other(tls: Stack) -> None:
    with socket.create_connection(("127.0.0.1", tls.port), 5) as plain:
        plain.sendall(b"PING\r\n")
        with suppress(ConnectionError):
            assert plain.recv(100) == b"", "without TLS"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        answer(tls, context(tls, client=False))
    old = context(tls)
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        answer(tls, old)


def test_the_hosts_tools_find_the_certificates(tls: Stack) -> None:
    python = str(ROOT / ".venv" / "bin" / "python")
    assert tls.run(python, "-m", "aegis_worker", "health", "probe", ENV="dev", PYTHONPATH=".").returncode == 0
    assert tls.redis("ping") == "PONG"
    done = tls.run(
        python,
        "-m",
        "aegis_worker",
        "health",
        "probe",
        check=False,
        ENV="dev",
        PYTHONPATH=".",
        REDIS_SSL_CA_CERTS=__file__,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_keys_are_where_they_belong(tls: Stack) -> None:
    files = {service: tls.host(service).check_output("ls /run/secrets").split() for service in ("worker", "redis")}
    assert "redis_ca.key" not in files["worker"] + files["redis"]
    assert "redis_server.key" not in files["worker"]
    seen = [tls.compose("config"), tls.compose("logs")]
    for file in (secret(tls, "redis_server.key"), secret(tls, "redis_client.key")):
        body = file.read_text().splitlines()[1]
        assert not any(body in text for text in seen)


@pytest.mark.parametrize("renewed", ["server", "client", "ca"])
async def test_certificates_change_while_jobs_run_and_none_is_lost(tls: Stack, renewed: str) -> None:
    before, started = serial(tls), {name: inspect(name)["State"]["StartedAt"] for name in containers(tls)}
    pool = await producer(tls)
    for n in range(JOBS):
        assert await pool.enqueue_job("light_io_task", delay_s=0.5, _job_id=f"{renewed}-{n}")
    await pool.aclose()
    done = await asyncio.to_thread(tls.make, "certs", f"ARGS=--renew {renewed}")

    pool = await producer(tls)
    for n in range(JOBS):
        job = Job(f"{renewed}-{n}", pool, "arq:queue:load_test", pool.job_deserializer)
        assert (await job.result(timeout=60, poll_delay=0.05))["seconds"] > 0
    await pool.aclose()
    assert (serial(tls) == before) == (renewed == "client")
    if renewed != "ca":  # a client of the new CA cannot tell Redis of it, which asks for one of the old
        assert {name: inspect(name)["State"]["StartedAt"] for name in containers(tls)} == started
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["certificate", "expires", "days", "of"]
    assert [row.split()[0] for row in rows] == ["redis_ca.crt", "redis_server.crt", "redis_client.crt"]
    assert rows[1].endswith("redis, localhost, 127.0.0.1")


def containers(stack: Stack) -> list[str]:
    return [*stack.containers("worker"), *stack.containers("redis")]


def test_certs_and_up_again_change_nothing(tls: Stack) -> None:
    before = serial(tls), [(name, inspect(name)["State"]["StartedAt"]) for name in containers(tls)]
    tls.make("certs")
    tls.make("up")
    assert (serial(tls), [(name, inspect(name)["State"]["StartedAt"]) for name in containers(tls)]) == before


def test_a_file_that_was_deleted_is_made_anew_and_reaches_the_containers(tls: Stack) -> None:
    before = serial(tls)
    secret(tls, "redis_ca.crt").unlink()
    assert "restarting the stack" in tls.make("certs").stderr
    tls.make("up")
    assert serial(tls) != before
    assert tls.app("load-test", "io", "-n", "20")["done"] == 20
