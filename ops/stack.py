"""One environment's stack on this machine: what runs, and the one way in which commands are run on it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from . import commands, configuration
from .configuration import ROOT, ConfigurationError, Environment

T = TypeVar("T")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Container:
    """A container as it is now; ``config`` and ``image`` tell whether it is what the configuration asks for."""

    id: str
    name: str
    service: str
    state: str  #: created, running, restarting, exited, …
    health: str  #: starting, healthy, unhealthy; empty without a check
    config: str
    image: str
    restarts: int

    @property
    def runs(self) -> bool:
        return self.state in ("running", "restarting", "paused")


@dataclass(frozen=True)
class Stack:
    """An environment, and how commands are run on it: ``dry_run`` prints those that would change something."""

    environment: Environment
    dry_run: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)  #: for Compose, above the env files

    @property
    def name(self) -> str:
        return self.environment.name

    @property
    def version(self) -> str:
        """The tag of the workers' image."""
        return {**self.environment.values, **self.variables}["APP_VERSION"]

    @property
    def project(self) -> str:
        return self.environment.values["COMPOSE_PROJECT_NAME"]

    def given(self, **variables: str) -> Stack:
        """Return the same stack with values of its own for variables of the env files."""
        return replace(self, variables={**self.variables, **variables})

    def reloaded(self) -> Stack:
        """Return the stack with the env files of now, for what runs long."""
        return replace(self, environment=configuration.load(self.name))

    # -- how commands are run --------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], *, quiet: bool = False, stdin: IO[bytes] | None = None) -> int:
        """Run what changes something; return its exit code. Its output is the caller's own, errors alone if quiet."""
        if self.dry_run:
            variables = [f"{name}={value}" for name, value in self.variables.items()]
            print(shlex.join([*(["env", *variables] if variables and "compose" in argv else []), *argv]), flush=True)
            return 0
        stdout = subprocess.DEVNULL if quiet else None
        return subprocess.run(argv, cwd=ROOT, env=self._shell, stdin=stdin, stdout=stdout, check=False).returncode

    def change(self, what: str, action: Callable[[], T]) -> T | None:
        """Do what changes something without a command; None where it is only said."""
        if self.dry_run:
            print(f"# {what}", flush=True)
            return None
        return action()

    def write(self, variable: str, value: str) -> None:
        """Set a variable of the environment on this machine, for good."""
        file = self.environment.local_file
        line = f"{variable}={value} into {file.relative_to(ROOT)}"
        self.change(f"write {line}", lambda: configuration.write(file, variable, value))

    def ask(self, argv: Sequence[str], *, within_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run what only looks, in a dry run too. Raises ``subprocess.TimeoutExpired`` where it takes longer."""
        return subprocess.run(
            argv,
            cwd=ROOT,
            env=self._shell,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within_s,
            check=False,
        )

    def output(self, argv: Sequence[str]) -> str:
        """Return what a command prints. Raises ``ConfigurationError`` with what it says where it fails."""
        done = self.ask(argv)
        if done.returncode:
            raise ConfigurationError(done.stderr.strip() or f"{shlex.join(argv)}: exit code {done.returncode}")
        return done.stdout

    def take(self, argv: Sequence[str]) -> str:
        """Run what changes something, and return what it prints, in a dry run nothing. Raises as ``output`` does."""
        if self.dry_run:
            self.run(argv)
            return ""
        return self.output(argv)

    @contextmanager
    def pipe(self, argv: Sequence[str], **ends: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command beside what is done with its ``stdin`` or ``stdout``. Raises as ``output`` does."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(argv, cwd=ROOT, env=self._shell, stderr=said, **ends)
            try:
                with suppress(BrokenPipeError):  # it says itself why it ended
                    yield process
                    if process.stdin:
                        process.stdin.close()
                code = process.wait()
            finally:
                process.kill()
                process.wait()
                for end in filter(None, (process.stdin, process.stdout)):
                    with suppress(BrokenPipeError):
                        end.close()
            if code:
                said.seek(0)
                raise ConfigurationError(said.read().decode().strip() or f"{argv[0]}: exit code {code}")

    def need_engine(self) -> None:
        """Raise ``ConfigurationError`` where Docker or its Compose is missing, or no engine answers."""
        if shutil.which("docker") is None:
            raise ConfigurationError("Docker is not installed here: `make engine` installs and starts it")
        if self.ask(["docker", "compose", "version"]).returncode:
            raise ConfigurationError("Docker has no Compose here: `make engine` installs it")
        if self.ask(["docker", "version", "--format", "{{.Server.Version}}"]).returncode:
            raise ConfigurationError("no Docker engine answers: `make engine` starts it")

    def must_be_ours(self) -> None:
        """Raise ``ConfigurationError`` where the stack is another checkout's, with secrets and env files of its own."""
        for line in set(filter(None, self.output(commands.list_checkouts(self.project)).splitlines())):
            folder = Path(line.removesuffix("/compose"))
            # Where it no longer is one, it was moved.
            if (folder / "compose" / "base.yml").is_file() and not folder.samefile(ROOT):
                raise ConfigurationError(
                    f"ENV={self.name} runs from {folder}, and this is {ROOT}: change it there, or type `make down "
                    f"ENV={self.name}` there first; a second stack needs a COMPOSE_PROJECT_NAME of its own"
                )

    @property
    def _shell(self) -> dict[str, str]:
        return {**os.environ, **self.variables}

    # -- what there is ---------------------------------------------------------------------------------------------

    def model(self) -> dict[str, Any]:
        """Return the merged configuration, as Compose has it."""
        argv = commands.compose(self.environment, "config", "--format", "json")
        model: dict[str, Any] = json.loads(self.output(argv))
        return model

    def services(self) -> list[str]:
        return self.output(commands.compose(self.environment, "config", "--services")).split()

    def running(self) -> list[str]:
        """Return the services that have a container which runs."""
        return self.output(commands.compose(self.environment, "ps", "--services")).split()

    def containers(self) -> list[Container]:
        """Return the services' containers, those that have ended too."""
        found = self.output(commands.list_containers(self.project)).split()
        if not found:
            return []
        # One that is removed meanwhile is told on standard error, beside the others.
        facts = json.loads(self.ask(["docker", "inspect", *found]).stdout)
        return [_container(each) for each in facts]


def _container(facts: Mapping[str, Any]) -> Container:
    labels, state = facts["Config"]["Labels"], facts["State"]
    return Container(
        id=facts["Id"],
        name=facts["Name"].lstrip("/"),
        service=labels["com.docker.compose.service"],
        state=state["Status"],
        health=state.get("Health", {}).get("Status", ""),
        config=labels["com.docker.compose.config-hash"],
        image=facts["Image"],
        restarts=facts["RestartCount"],
    )


def is_worker(service: str) -> bool:
    """Whether a service is one of workers: the one for all queues, or one queue's."""
    return service.partition("-")[0] == "worker"
