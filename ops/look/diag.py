"""One archive for a bug report: what is configured, what runs and what it logs, without the secrets.

What cannot be had is a file with the reason, so that a broken stack can be reported, too.
"""

import argparse
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config import ROOT, OpsError
from ..config.units import DAY_S
from ..engine import commands, journal, sealed, services, terminal
from ..engine.stack import Stack, is_worker
from ..engine.terminal import say
from . import events
from .redaction import Redactor, secrets_of

WITHIN_S = 20  #: seconds that a source has
LOG_LINES = 500
VERSION = ["docker", "version"]
EVENTS_S = 7 * DAY_S
_ACL_HASH = re.compile(r"#[0-9a-f]{64}")

README = """\
Diagnostics of ENV={environment}, made on {when} by `make diag`.

{files}

Redacted: everything in secrets/{environment}/, in clear and encoded; values of variables with names such as PASSWORD,
TOKEN, SECRET or KEY; users and passwords in URLs. The finished archive was searched for all of secrets/ once more.
It has no payloads, arguments or results of jobs, unless your tasks write them to the log or into the text of an error.
Names of hosts, users, paths and images are in it. Before you send it, check logs/ and env/.
"""


@dataclass(frozen=True)
class Source:
    """A file of the archive, the command that prints it, and what is left out of that."""

    file: str
    argv: list[str]
    reduced: Callable[[str], str] = str


def write(stack: Stack, _: argparse.Namespace) -> int:
    """Write the archive, which only its owner can read. Raises ``OpsError`` if a secret is in it."""
    path = ROOT / ".local" / f"diag-{stack.name}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    needed = list(sources(stack))
    asked = "".join(f"\n#   {shlex.join(source.argv)}" for source in needed)
    what = f"write {path.relative_to(ROOT)} with what these print:{asked}"
    if stack.change(what, lambda: _write(stack, path, needed)):
        print(path.relative_to(ROOT))
        say("secrets are redacted; before you send it, read its README.txt")
    return 0


def sources(stack: Stack) -> Iterator[Source]:
    """Give what can be asked: of the checkout, of the machine and, if an engine answers, of the stack."""
    yield Source("version.txt", ["git", "describe", "--always", "--dirty", "--tags"])
    yield Source("changes.txt", ["git", "status", "--short"])
    yield Source("config.json", commands.compose(stack.environment, "config", "--format", "json"))
    yield Source("machine/system.txt", ["uname", "-a"])
    yield Source("machine/disk.txt", ["df", "-h"])
    yield Source("machine/memory.txt", ["free", "-m"])
    yield Source("machine/cgroup.txt", ["stat", "--file-system", "/sys/fs/cgroup"])
    yield Source("docker/compose.txt", ["docker", "compose", "version"])
    yield Source("docker/version.txt", VERSION)
    if _answers(stack):
        yield Source("docker/info.txt", ["docker", "info"])
        yield Source("docker/disk.txt", ["docker", "system", "df"])
        yield Source("docker/images.txt", ["docker", "images", "--no-trunc", "--digests"])
        yield from _of_containers(stack)
        yield from _of_services(stack)


def _of_containers(stack: Stack) -> Iterator[Source]:
    yield Source("ps.txt", commands.compose(stack.environment, "--profile", "*", "ps", "--all"))
    for kind in commands.KINDS:
        if ids := _words(stack, commands.list_all(kind, stack.project)):
            yield Source(f"docker/{kind}s.json", ["docker", kind, "inspect", *ids])
    label = f"label=com.docker.compose.project={stack.project}"
    names = _words(stack, ["docker", "ps", "--all", "--format={{.Names}}", "--filter", label])
    for name in names:
        yield Source(f"logs/{name}.txt", ["docker", "logs", "--timestamps", f"--tail={LOG_LINES}", name])
    if names:
        yield Source("docker/stats.txt", ["docker", "stats", "--no-stream", *names])


def _of_services(stack: Stack) -> Iterator[Source]:
    running = _words(stack, commands.compose(stack.environment, "ps", "--services"))
    if any(map(is_worker, running)):
        yield Source("health.json", services.app_command(stack, ["health", "status", "--json"], terminal=False))
    if "redis" in running:
        for file, arguments, reduced in (
            ("info.txt", ["info", "everything"], str),
            ("config.txt", ["--json", "config", "get", "*"], str),
            ("acl.txt", ["acl", "list"], _without_hashes),
            ("slowlog.json", ["--json", "slowlog", "get", "128"], _without_arguments),
        ):
            yield Source(f"redis/{file}", commands.redis_cli(stack.environment, arguments, terminal=False), reduced)


def leaks(archive: Path, redactor: Redactor) -> list[str]:
    """Return the files of an archive that have a secret."""
    with sealed.reading(archive, kind="r|gz") as parts:
        return [
            entry.name
            for entry, content in parts
            if redactor.finds(f"{entry.name}\n{content.read().decode(errors='replace')}")
        ]


def _write(stack: Stack, path: Path, sources: list[Source]) -> bool:
    path.parent.mkdir(exist_ok=True)
    secrets = secrets_of(stack.environment.secrets, stack.environment.values)
    clean = Redactor(secrets).clean
    folder = f"{path.name.removesuffix('.tar.gz')}/"
    rows = [("file", "what it is")]
    with sealed.writing(path, kind="w|gz", folder=folder, approve=partial(_approve, stack, secrets)) as archive:

        def add(name: str, text: str, about: str) -> None:
            archive.add(clean(name), clean(text).encode())
            rows.append((clean(name), clean(about)))

        for file in stack.environment.files:
            add(f"env/{file.name}", file.read_text(errors="replace"), "as it is here")
        add("events.txt", _events(stack), "what happened in the last days: `make events`")
        if (done := journal.path(stack.name)).exists():
            add("journal.txt", done.read_text(errors="replace"), "what people did by `make`")
        for source in sources:
            code, text = _ask(stack, source.argv)
            add(source.file, text if code else source.reduced(text), _about(stack, source.argv, code))
        rows.append((sealed.SUMS, "the checksums of all files"))
        when = time.strftime("%Y-%m-%d %H:%M:%S %z")
        files = terminal.table([("", *row) for row in rows])
        archive.add("README.txt", README.format(environment=stack.name, when=when, files=files).encode())
    return True


def _approve(stack: Stack, secrets: set[str], archive: Path) -> None:
    """Raise ``OpsError`` if a secret is in the archive: one that was changed meanwhile, or that nobody thought of."""
    now = secrets_of(stack.environment.secrets, stack.environment.values)
    if found := leaks(archive, Redactor(secrets | now)):
        raise OpsError(f"no archive was written: there is a secret in {', '.join(found)} of it")


def _about(stack: Stack, argv: list[str], code: int) -> str:
    text = shlex.join(argv).replace(shlex.join(commands.compose(stack.environment)), "docker compose")
    short = text if len(text) <= 80 else f"{text[:79]}…"
    return f"{short}{f' FAILED: {code}' if code else ''}"


def _ask(stack: Stack, argv: list[str]) -> tuple[int, str]:
    """Return a command's exit code and all that it prints."""
    done = stack.ask(argv, within_s=WITHIN_S)
    return done.returncode, done.stdout + done.stderr


def _answers(stack: Stack) -> bool:
    """Return whether an engine answers. Each question to one that hangs would take its time."""
    return _ask(stack, VERSION)[0] == 0


def _events(stack: Stack) -> str:
    try:
        if not _answers(stack):
            raise OpsError("no Docker engine answers")
        return "".join(f"{event}\n" for event in events.gather(stack, time.time() - EVENTS_S))
    except (OpsError, OSError, ValueError) as error:
        return f"{error}\n"


def _words(stack: Stack, argv: list[str]) -> list[str]:
    code, text = _ask(stack, argv)
    return [] if code else text.split()


def _without_hashes(acl: str) -> str:
    """Leave out all hashes of passwords, also those that are not in secrets/."""
    return _ACL_HASH.sub("#[redacted]", acl)


def _without_arguments(slow: str) -> str:
    """Leave a slow command's name and its key. The rest may be a payload."""
    try:
        entries = json.loads(slow)
    except ValueError as error:
        return f"not JSON: {error}\n"
    return json.dumps([[*entry[:3], entry[3][:2]] for entry in entries], indent=1)
