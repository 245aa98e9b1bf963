"""The facts that the checks need: the host, the environment's files, the engine, what runs."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from ...config import OpsError
from ...config.environment import Environment, names
from ...config.load import load
from ...engine import commands, services, shell
from ...engine.stack import is_worker
from ...secrets import certificates
from ...secrets.certificates import NAMES, Certificate
from .finding import Unavailable, fail, warn

T = TypeVar("T")

WITHIN_S = 5  #: for each command; one that works never takes so long

#: All facts about Redis, in one call.
REDIS_SAYS = """\
for command in "info" "config get *" "acl list"; do
  set -f; redis-cli --user admin --askpass $REDIS_CLI_TLS $command < /run/secrets/redis_admin_password; echo ----
done"""


class fact(Generic[T]):
    """A property that is read once, even if it is not available."""

    def __init__(self, look: "Callable[[Facts], T]") -> None:
        self.look = look
        self.name = look.__name__

    def __get__(self, facts: "Facts", _: type["Facts"]) -> T:
        known = facts.known
        if self.name not in known:
            try:
                known[self.name] = self.look(facts)
            except Exception as error:
                known[self.name] = error
        found = known[self.name]
        if isinstance(found, Exception):
            raise found
        return cast(T, found)


class Facts:
    """The facts about one environment. Each raises ``Unavailable`` if it is not available."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known: dict[str, Any] = {}

    def ask(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command that changes nothing."""
        return shell.ask(argv, text=stdin, within_s=WITHIN_S)

    def output(self, *argv: str, fix: str) -> str:
        """Return what a command prints. If it fails, raise ``Unavailable`` with the last line of its message."""
        done = self.ask(*argv)
        if done.returncode:
            raise Unavailable(fail(last_line(done.stderr), fix))
        return done.stdout

    # -- the host --------------------------------------------------------------------------------------------------

    @staticmethod
    def kernel(path: str) -> str:
        """Return what a file of the kernel says."""
        if (file := Path(path)).exists():
            return file.read_text().strip()
        raise Unavailable

    @fact
    def meminfo(self) -> dict[str, int]:
        """Amounts of memory, in bytes, by the kernel's names."""
        text = self.kernel("/proc/meminfo")
        return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}

    # -- the engine ------------------------------------------------------------------------------------------------

    @fact
    def docker(self) -> str:
        """The path of Docker's client."""
        if path := shutil.which("docker"):
            return path
        raise Unavailable(fail("Docker is not installed here", "make engine"))

    @fact
    def compose_version(self) -> str:
        _ = self.docker
        done = self.ask("docker", "compose", "version", "--short")
        if done.returncode:
            raise Unavailable(fail("Docker has no Compose here", "make engine"))
        return done.stdout.strip()

    @fact
    def engine(self) -> dict[str, Any]:
        """The facts about the engine: ``docker info``."""
        _ = self.docker
        # If no engine answers, this still exits with 0, and prints only facts about the client.
        done = self.ask("docker", "info", "--format", "{{json .}}")
        info: dict[str, Any] = json.loads(done.stdout or "{}")
        if info.get("ServerVersion"):
            return info
        said = last_line(done.stderr or str(info.get("ServerErrors")))
        if "permission denied" in said:
            fix = "sudo usermod -aG docker $USER; then log in again"
            raise Unavailable(fail("you have no right to use the engine", fix))
        raise Unavailable(fail(f"no engine answers: {said}", "make engine"))

    # -- the environment -------------------------------------------------------------------------------------------

    @fact
    def environment(self) -> Environment:
        try:
            return load(self.name)
        except OpsError as error:
            fix = f"edit env/{self.name}.env" if self.name in names() else "give ENV a name that exists"
            raise Unavailable(*(fail(line, fix) for line in str(error).splitlines())) from None

    @fact
    def model(self) -> dict[str, Any]:
        """The merged configuration, as Compose has it."""
        _ = self.compose_version
        argv = commands.compose(self.environment, "config", "--format", "json")
        model: dict[str, Any] = json.loads(self.output(*argv, fix=f"edit a layer in compose/ or env/{self.name}.env"))
        return model

    @property
    def workers(self) -> list[str]:
        return [name for name in self.model["services"] if is_worker(name)]

    @fact
    def images(self) -> dict[str, dict[str, Any]]:
        """What the engine knows about the images of the services, by their names in the configuration."""
        _ = self.engine
        images = sorted({service["image"] for service in self.model["services"].values() if "image" in service})
        asked = {name: self.ask("docker", "image", "inspect", name) for name in images}
        return {name: json.loads(done.stdout)[0] for name, done in asked.items() if done.returncode == 0}

    @fact
    def secrets(self) -> Path:
        """The folder of the secrets, if we may read it."""
        folder = self.environment.secrets
        if not folder.parent.exists() or (os.access(folder.parent, os.X_OK) and not folder.exists()):
            raise Unavailable(warn("there are none yet", f"make up ENV={self.name}"))
        if not os.access(folder, os.R_OK | os.X_OK):
            raise Unavailable(fail(f"you have no right to read secrets/{self.name}/", "sudo chown -R $USER secrets"))
        return folder

    @fact
    def certificates(self) -> dict[str, Certificate]:
        """The certificates of the environment, if it has TLS."""
        if not self.environment.tls:
            raise Unavailable
        if not certificates.on_host():
            raise Unavailable(warn("no OpenSSL 3 on this host reads them", f"make certs ENV={self.name}"))
        openssl = certificates.command(self.secrets, None)
        try:
            found = {name: certificates.read(self.secrets, name, openssl) for name in NAMES}
        except OpsError as error:
            raise Unavailable(fail(last_line(str(error)), f"make certs ENV={self.name}")) from None
        if missing := [name for name, certificate in found.items() if certificate is None]:
            raise Unavailable(fail(f"missing: {', '.join(missing)}", f"make certs ENV={self.name}"))
        return {name: certificate for name, certificate in found.items() if certificate}

    # -- what runs -------------------------------------------------------------------------------------------------

    @fact
    def containers(self) -> list[dict[str, Any]]:
        """The project's containers as ``docker inspect`` has them, also those that have ended."""
        _ = self.engine
        project = self.environment.values["COMPOSE_PROJECT_NAME"]
        ids = self.output(*commands.list_containers(project), fix="docker ps").split()
        found: list[dict[str, Any]] = json.loads(self.ask("docker", "inspect", *ids).stdout or "[]") if ids else []
        return sorted(found, key=name_of)

    @property
    def started(self) -> list[dict[str, Any]]:
        """The containers of a stack that is not down."""
        if not self.containers:
            raise Unavailable
        return self.containers

    def runs(self, service: str) -> bool:
        """Return whether a service has a container in which a command can be run."""
        states = [each["State"] for each in self.containers if service_of(each) == service]
        return any(state["Status"] == "running" for state in states)

    @fact
    def redis(self) -> dict[str, Any]:
        """Facts about Redis: its ``info`` and ``config`` by name, and its ``users`` with their hashes.

        ``skew`` is the difference between its clock and ours in seconds. The time of the call does not count.
        """
        if not self.runs("redis"):
            raise Unavailable
        argv = commands.run_in(self.environment, "redis", ["sh"], terminal=False)
        asked = time.time()
        fix = f"make logs ARGS=redis ENV={self.name}"
        said = self.ask(*argv, stdin=REDIS_SAYS)
        answered = time.time()
        info_text, config_text, users_text, *_ = (part.strip() for part in said.stdout.split("----\n") + [""] * 2)
        info = dict(re.findall(r"^(\w+):(.*?)\r?$", info_text, re.M))
        if "redis_version" not in info:
            raise Unavailable(fail(f"Redis does not answer: {last_line(info_text or said.stderr)}", fix))
        now = int(info["server_time_usec"]) / 1e6
        lines = config_text.splitlines()
        return {
            "info": info,
            "config": dict(zip(lines[::2], lines[1::2], strict=False)),
            "users": hashes(users_text),
            "skew": max(0.0, asked - now, now - answered),
        }

    @fact
    def queues(self) -> list[dict[str, Any]]:
        """The state of the queues, as ``my-app health status`` has it."""
        _ = self.redis
        running = [name for name in self.workers if self.runs(name)]
        if not running:
            raise Unavailable
        queues = services.served(self.environment, self.workers)
        command = ["health", "status", "--json"]
        done = self.ask(*commands.app(self.environment, running[0], queues, command, terminal=False))
        if not done.stdout.startswith("{"):
            raise Unavailable(
                warn(
                    f"a worker cannot read the state of the queues: {last_line(done.stderr)}",
                    f"make health ENV={self.name}",
                )
            )
        found: list[dict[str, Any]] = json.loads(done.stdout)["queues"]
        return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no answer"])[-1]


def name_of(container: dict[str, Any]) -> str:
    return str(container["Name"]).lstrip("/")


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def hashes(acl: str) -> dict[str, set[str]]:
    """Return the hashes of each user's passwords in an ACL: what Redis lists, or what its file has."""
    users = re.findall(r"^user (\S+) (.*)$", acl, re.M)
    return {name: set(re.findall(r"#([0-9a-f]{64})", rules)) for name, rules in users}
