"""Who reaches Redis in production, and whom workers reach: tried from every side."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from ops.config import envfile
from tests.stack.conftest import MakeStack, Stack, inspect

#: Prints the certificate of who answers at an address. A gateway that answers in everybody's place is not Redis.
PROBE = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 6379), timeout=3))"


@pytest.fixture(scope="module")
def prod(make_stack: MakeStack) -> Stack:
    stack = make_stack("prod")
    stack.make("up")
    return stack


def address(container: str) -> str:
    (network,) = inspect(container)["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def network(stack: Stack, name: str) -> dict[str, object]:
    (facts,) = json.loads(stack.run("docker", "network", "inspect", f"{stack.project}_{name}").stdout)
    assert isinstance(facts, dict)
    return facts


def is_redis(stack: Stack, *python: str) -> bool:
    """Whether a Python that runs somewhere finds Redis at the address that it has now."""
    done = stack.run(*python, "-c", PROBE, address(stack.container("redis")), check=False)
    return done.stdout.strip() == (stack.folder / "secrets" / "prod" / "redis_server.crt").read_text().strip()


def test_a_worker_reaches_redis(prod: Stack) -> None:
    assert is_redis(prod, "docker", "exec", prod.container("worker"), "python")


def test_the_host_does_not(prod: Stack) -> None:
    assert not is_redis(prod, sys.executable)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", prod.port)) != 0


@pytest.fixture
def another_network(prod: Stack) -> Iterator[str]:
    name = f"{prod.project}-another"
    prod.run("docker", "network", "create", name)
    yield name
    prod.run("docker", "network", "rm", name)


@pytest.mark.parametrize("where", ["bridge", "host", "{project}-another", "{project}_egress"])
def test_no_container_elsewhere_does(prod: Stack, another_network: str, where: str) -> None:
    image = prod.inspect("worker")["Config"]["Image"]
    options = ["--rm", "--entrypoint", "python", "--network", where.format(project=prod.project)]
    assert not is_redis(prod, "docker", "run", *options, image)


def test_nothing_is_published_and_redis_is_on_a_network_with_workers_alone(prod: Stack) -> None:
    for service in ("worker", "redis"):
        facts = prod.inspect(service)
        assert facts["HostConfig"]["PortBindings"] in ({}, None)
        assert not any(facts["NetworkSettings"]["Ports"].values())
    assert list(prod.inspect("redis")["NetworkSettings"]["Networks"]) == [f"{prod.project}_internal"]
    internal = network(prod, "internal")
    assert internal["Internal"]
    assert internal["Containers"].keys() == {prod.container("worker"), prod.container("redis")}


@pytest.mark.parametrize(("service", "port"), [("worker", None), ("redis", 6379)])
def test_only_redis_listens_and_only_on_its_port(prod: Stack, service: str, port: int | None) -> None:
    table = prod.host(service).check_output("cat /proc/net/tcp /proc/net/tcp6").splitlines()
    rows = [row.split() for row in table if " 0A " in row]
    # Docker's own resolver listens on 127.0.0.11.
    ports = {int(row[1].split(":")[1], 16) for row in rows if not row[1].startswith("0B00007F")}
    assert ports == ({port} if port else set())


# -- the way out --------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(prod: Stack) -> Iterator[str]:
    """The address of a server beyond the stack's internal network."""
    image = prod.inspect("redis")["Config"]["Image"]
    options = ["--rm", "--detach", "--network", f"{prod.project}_egress"]
    server = prod.run("docker", "run", *options, image, "redis-server", "--protected-mode", "no").stdout.strip()
    yield address(server)
    prod.run("docker", "stop", "--time", "1", server)


def reaches(stack: Stack, address: str) -> bool:
    """Whether a worker can connect to a server."""
    connect = f"import socket; socket.create_connection(('{address}', 6379), 3)"
    return stack.host("worker").run(f'python -c "{connect}"').succeeded


def test_workers_have_a_way_out_and_redis_has_none(prod: Stack, outside: str) -> None:
    assert reaches(prod, outside)
    assert prod.host("redis").run(f"timeout 5 redis-cli -h {outside} ping").failed
    routes = [row.split() for row in prod.host("worker").check_output("cat /proc/net/route").splitlines()[1:]]
    (gateway,) = [row[2] for row in routes if row[1] == "00000000"]
    assert socket.inet_ntoa(bytes.fromhex(gateway)[::-1]) == network(prod, "egress")["IPAM"]["Config"][0]["Gateway"]


def resolver(stack: Stack, service: str) -> list[str]:
    """Whom Docker's resolver asks for names from outside; none where the host's are asked."""
    return stack.inspect(service)["HostConfig"]["Dns"] or []


@pytest.fixture
def closed(prod: Stack) -> Iterator[Stack]:
    """Workers without a way out, as who has no make starts them; `make up` gives it back."""
    envfile.write(prod.local_file, "WORKER_EGRESS", "off")
    files = [part for name in ("base", "prod", "prod.local") for part in ("--env-file", f"env/{name}.env")]
    prod.run("docker", "compose", *files, "up", "--detach", "--wait")
    yield prod
    envfile.write(prod.local_file, "WORKER_EGRESS", "on")
    prod.make("up")
    assert resolver(prod, "worker") == []


#: Asks for a name from outside, and prints what comes to a name server of the container's own.
ASK = """
import socket, threading
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.settimeout(10)
threading.Thread(target=socket.getaddrinfo, args=("example.org", 80), daemon=True).start()
print(server.recv(512))
"""


def test_the_way_out_of_workers_can_be_closed(prod: Stack, outside: str, request: pytest.FixtureRequest) -> None:
    before = prod.container("redis")
    request.getfixturevalue("closed")
    assert not reaches(prod, outside)
    assert list(prod.inspect("worker")["NetworkSettings"]["Networks"]) == [f"{prod.project}_internal"]
    assert resolver(prod, "worker") == resolver(prod, "redis") == ["127.0.0.1"]
    assert "example" in prod.run("docker", "exec", prod.container("worker"), "python", "-c", ASK).stdout
    assert prod.container("redis") == before
    assert prod.app("load-test", "io", "-n", "20")["done"] == 20


def test_a_stack_that_leaves_the_secure_network_and_comes_back_finds_redis(prod: Stack) -> None:
    layers = prod.run("sed", "-n", "s/^COMPOSE_FILE=//p", "env/prod.env").stdout.strip()
    for now in (layers.replace(":compose/secure-network.yml", ""), layers):
        envfile.write(prod.local_file, "COMPOSE_FILE", now)
        prod.make("up")
        assert prod.app("load-test", "io", "-n", "20")["done"] == 20
        assert is_redis(prod, sys.executable) == ("secure-network" not in now), "the probe finds what it can reach"
