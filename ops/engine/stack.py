"""One environment's stack on this machine: what runs, and how it is changed."""

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from ..config import ROOT, OpsError, envfile
from ..config.environment import Environment
from ..config.load import load
from . import commands, journal, lock, shell
from .terminal import say

T = TypeVar("T")


@dataclass(frozen=True)
class Container:
    """A container as it is now."""

    id: str
    name: str
    service: str
    state: str  #: created, running, restarting, exited, …
    health: str  #: starting, healthy, unhealthy; empty without a check
    restarts: int

    @property
    def runs(self) -> bool:
        return self.state in ("running", "restarting", "paused")


@dataclass(frozen=True)
class Stack:
    """An environment, and what is done to its stack."""

    environment: Environment
    variables: Mapping[str, str] = field(default_factory=dict)  #: for Compose, above the env files

    @property
    def name(self) -> str:
        return self.environment.name

    @property
    def version(self) -> str:
        """The tag of the workers' image."""
        return self.value("APP_VERSION")

    @property
    def project(self) -> str:
        return self.environment.values["COMPOSE_PROJECT_NAME"]

    def value(self, variable: str) -> str:
        return {**self.environment.values, **self.variables}[variable]

    def with_variables(self, **variables: str) -> "Stack":
        """Return the same stack with other values for variables of the env files."""
        return replace(self, variables={**self.variables, **variables})

    def reloaded(self) -> "Stack":
        """Return the stack with the env files as they are now, for a command that runs long."""
        return replace(self, environment=load(self.name))

    # -- what changes something: a rehearsal does these otherwise ---------------------------------------------------

    def run(self, argv: Sequence[str], *, quiet: bool = False, stdin: IO[bytes] | None = None) -> int:
        """Run a command that changes something, as ``shell.run`` does."""
        return shell.run(argv, self.variables, quiet=quiet, stdin=stdin)

    def take(self, argv: Sequence[str]) -> str:
        """Run a command that changes something, and return what it prints. A rehearsal returns an empty text."""
        return self.output(argv)

    def change(self, what: str, action: Callable[[], T]) -> T | None:
        """Do what needs more than one command, or none. A rehearsal says ``what`` it would do, and returns None."""
        return action()

    def tell(self, text: str) -> None:
        """Say what was done."""
        say(text)

    def record(self, event: str, **facts: object) -> None:
        """Write what was done into the environment's journal."""
        journal.write(self.name, event, **facts)

    def alone(self, command: str, of: str = "") -> AbstractContextManager[None]:
        """Wait until nobody else changes the stack, or a part ``of`` it, and keep others waiting."""
        return lock.alone(self.name + of, command)

    def write(self, variable: str, value: str) -> None:
        """Set a variable of the environment on this machine, for good."""
        file = self.environment.local_file
        what = f"write {variable}={value} into {file.relative_to(ROOT)}"
        self.change(what, lambda: envfile.write(file, variable, value))

    # -- what only reads --------------------------------------------------------------------------------------------

    def ask(self, argv: Sequence[str], *, within_s: float | None = None) -> subprocess.CompletedProcess[str]:
        return shell.ask(argv, self.variables, within_s=within_s)

    def output(self, argv: Sequence[str]) -> str:
        return shell.output(argv, self.variables)

    def pipe(self, argv: Sequence[str], **ends: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return shell.pipe(argv, self.variables, **ends)

    def need_engine(self) -> None:
        """Raise ``OpsError`` if Docker or its Compose is missing, or no engine answers."""
        version = self.ask(["docker", "version", "--format", "{{.Server.Version}}"])
        if version.returncode == shell.NOT_INSTALLED:
            raise OpsError("Docker is not installed here: `make engine` installs and starts it")
        if self.ask(["docker", "compose", "version"]).returncode:
            raise OpsError("Docker has no Compose here: `make engine` installs it")
        if version.returncode:
            raise OpsError("no Docker engine answers: `make engine` starts it")

    def must_be_ours(self) -> None:
        """Raise ``OpsError`` if the stack is that of another checkout, with its own secrets and env files."""
        for line in set(filter(None, self.output(commands.list_checkouts(self.project)).splitlines())):
            folder = Path(line.removesuffix("/compose"))
            # A checkout that was moved is no longer there.
            if (folder / "compose" / "base.yml").is_file() and not folder.samefile(ROOT):
                raise OpsError(
                    f"ENV={self.name} runs from {folder}, and this is {ROOT}: run the command there, or type "
                    f"`make down ENV={self.name}` there first; a second stack needs its own COMPOSE_PROJECT_NAME"
                )

    def model(self) -> dict[str, Any]:
        """Return the merged configuration, as Compose has it."""
        argv = commands.compose(self.environment, "config", "--format", "json")
        model: dict[str, Any] = json.loads(self.output(argv))
        return model

    def services(self) -> list[str]:
        return self.output(commands.compose(self.environment, "config", "--services")).split()

    def running(self) -> list[str]:
        """Return the services with a container that runs."""
        return self.output(commands.compose(self.environment, "ps", "--services")).split()

    def containers(self) -> list[Container]:
        """Return the services' containers, also those that have ended."""
        found = self.output(commands.list_containers(self.project)).split()
        if not found:
            return []
        # Docker names those that were removed meanwhile on standard error, beside the others.
        return [_container(facts) for facts in json.loads(self.ask(["docker", "inspect", *found]).stdout)]


class Rehearsal(Stack):
    """The same stack for a dry run: it prints what would change something, and does none of it."""

    def run(self, argv: Sequence[str], *, quiet: bool = False, stdin: IO[bytes] | None = None) -> int:
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        print(shlex.join([*(["env", *variables] if variables and "compose" in argv else []), *argv]), flush=True)
        return 0

    def take(self, argv: Sequence[str]) -> str:
        self.run(argv)
        return ""

    def change(self, what: str, action: Callable[[], T]) -> T | None:
        print(f"# {what}", flush=True)
        return None

    def tell(self, text: str) -> None:
        """Nothing was done."""

    def record(self, event: str, **facts: object) -> None:
        """Nothing was done."""

    def alone(self, command: str, of: str = "") -> AbstractContextManager[None]:
        return nullcontext()


def _container(facts: Mapping[str, Any]) -> Container:
    labels, state = facts["Config"]["Labels"], facts["State"]
    return Container(
        id=facts["Id"],
        name=facts["Name"].lstrip("/"),
        service=labels["com.docker.compose.service"],
        state=state["Status"],
        health=state.get("Health", {}).get("Status", ""),
        restarts=facts["RestartCount"],
    )


def is_worker(service: str) -> bool:
    """Return whether a service has workers: the one for all queues, or the one for a single queue."""
    return service.partition("-")[0] == "worker"
