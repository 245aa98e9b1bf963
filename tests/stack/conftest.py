"""Real stacks: the checkout is copied, `make` is typed in the copy, and what it made is taken down again.

Each stack has a project name, a port and files of its own, so that stacks can run side by side and beside the
developer's.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from ops.engine import commands
from tests.conftest import ROOT, copy_checkout, free_port

IMAGES = {"PYTHON_IMAGE": "python:3.13-slim-trixie", "REDIS_IMAGE": "redis:8-alpine"}
REGISTRY = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{address}"}}
"""


#: What whoever runs the tests may have set for `make`, or for a stack of their own: a test's stack has no use for it.
FROM_OUTSIDE = re.compile(
    "(AEGIS|WORKER|REDIS)_.*|MAKE.*|MFLAGS|YES|FORCE|DRY_RUN|ENV|N|QUEUE|VERSION|MIN|MAX|ARGS|FILE|KEEP|IMAGE|CONFIRM"
)


class Stack:
    """One environment's stack, in a copy of the checkout."""

    def __init__(self, folder: Path, env: str, changes: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.project = f"aegis-test-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.local_file = folder / "env" / f"{env}.local.env"
        given = {
            "COMPOSE_PROJECT_NAME": self.project,
            "REDIS_PORT": str(self.port),
            "APP_IMAGE": self.project,  # another stack's code may be another
            "WORKER_HEALTH_CHECK_INTERVAL": "1",
            "WORKER_QUEUES": "system,load_test",  # whatever queues a team has beside them
        }
        self.local_file.write_text("".join(f"{name}={value}\n" for name, value in (given | changes).items()))

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, as a person would who sits there."""
        environment = {name: value for name, value in os.environ.items() if not FROM_OUTSIDE.fullmatch(name)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment | variables, capture_output=True, text=True, timeout=240
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def make(self, *targets: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("make", "--no-print-directory", f"ENV={self.env}", *targets, check=check)

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self.run("python3", "-m", "ops", "--env", self.env, "compose", *arguments, check=check).stdout

    def containers(self, *services: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", *services).split()

    def replicas(self, service: str) -> list[str]:
        """The service's containers, without those of ``docker compose run``."""
        argv = [*commands.list_containers(self.project), "--filter", f"label=com.docker.compose.service={service}"]
        return sorted(self.run(*argv).stdout.split())

    def container(self, service: str) -> str:
        (only,) = self.containers(service)
        return only

    def host(self, service: str) -> Host:
        """The inside of a service's container."""
        return testinfra.get_host(f"docker://{self.container(service)}")

    def inspect(self, service: str) -> dict[str, Any]:
        return inspect(self.container(service))

    def redis(self, *arguments: str) -> str:
        return self.run("python3", "-m", "ops", "--env", self.env, "redis-cli", *arguments).stdout.strip()

    def app(self, *arguments: str, check: bool = True) -> Any:
        """Run a command of the app in a worker, and return the JSON it prints."""
        done = self.run("python3", "-m", "ops", "--env", self.env, "app", *arguments, "--json", check=check)
        return json.loads(done.stdout)

    def down(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "1", check=False)
        images = subprocess.run(["docker", "images", "--quiet", self.project], capture_output=True, text=True).stdout
        subprocess.run(["docker", "rmi", "--force", *images.split()], capture_output=True)

    def report(self) -> str:
        """What one wants to see of a stack on which a test failed."""
        parts = [self.compose("ps", "--all", check=False), self.compose("logs", "--tail", "20", check=False)]
        for name in self.compose("ps", "--all", "--quiet", check=False).split():
            parts.append(json.dumps(inspect(name)["State"], indent=1))
        return "\n".join(parts)


def inspect(container: str) -> dict[str, Any]:
    (facts,) = json.loads(subprocess.run(["docker", "inspect", container], capture_output=True, text=True).stdout)
    assert isinstance(facts, dict)
    return facts


def eventually(check: Callable[[], object], within_s: float = 30) -> None:
    """Wait until a check holds; say what it last was when it does not."""
    deadline = time.monotonic() + within_s
    while not (last := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s} s: {last!r}")
        time.sleep(0.2)


MakeStack = Callable[..., Stack]


@pytest.fixture(scope="session", autouse=True)
def _engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No engine is a failure: a stack that was not tested does not pass. The first process makes the base images."""
    done = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True)
    assert done.returncode == 0, f"these tests need a Docker engine, `make engine` starts it: {done.stderr}"
    with (tmp_path_factory.getbasetemp().parent / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["docker", "image", "inspect", *IMAGES.values()], capture_output=True).returncode:
            copy_checkout(folder := tmp_path_factory.mktemp("images"))
            stack = Stack(folder, "dev", {})
            stack.make("build")
            stack.down()


@pytest.fixture(scope="module")
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeStack]:
    """Makes copies of the checkout that are ready for `make up`; takes their stacks down in the end."""
    stacks: list[Stack] = []

    def make(env: str, **changes: str) -> Stack:
        folder = tmp_path_factory.mktemp(env)
        copy_checkout(folder)
        stack = Stack(folder, env, changes)
        stacks.append(stack)
        return stack

    yield make
    for stack in stacks:
        stack.down()


@pytest.fixture(scope="module")
def registry_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's registry, unpacked and not installed, kept in .local/ from one run to the next."""
    registry_program = ROOT / ".local" / "docker-registry"
    if not registry_program.exists():
        folder = tmp_path_factory.mktemp("registry")
        subprocess.run(["apt-get", "-qq", "download", "docker-registry"], cwd=folder, check=True, timeout=120)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "--extract", package, folder], check=True)
        registry_program.parent.mkdir(exist_ok=True)
        partial = registry_program.with_suffix(f".{os.getpid()}")
        partial.write_bytes((folder / "usr/bin/docker-registry").read_bytes())
        partial.chmod(0o755)
        partial.replace(registry_program)
    return registry_program


@pytest.fixture(scope="module")
def registry(registry_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry that is empty. Docker asks for no TLS on the loopback interface."""
    folder, address = tmp_path_factory.mktemp("registry"), f"127.0.0.1:{free_port()}"
    (folder / "registry.yml").write_text(REGISTRY.format(folder=folder, address=address))
    with (folder / "registry.log").open("w") as log:
        server = subprocess.Popen([registry_program, "serve", folder / "registry.yml"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{address}/v2/").close()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None] | Any:
    """On a failure, show the stacks that the test used."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Stack):
                report.sections.append((f"stack {name}", value.report()))
    return report
