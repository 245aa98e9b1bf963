"""One archive for a bug report: what is configured, what runs, what it says, without the secrets.

Whatever of it cannot be had is a file with the reason, so that a broken stack can be told of, too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import commands, events, inside, journal
from .configuration import ROOT, ConfigurationError
from .redaction import Redactor, secrets_of
from .stack import Stack, is_worker, say

WITHIN_S = 20  #: seconds that a source has
LOG_LINES = 500
VERSION = ["docker", "version"]
EVENTS_S = 7 * 86400
_ACL_HASH = re.compile(r"#[0-9a-f]{64}")

README = """\
Diagnostics of ENV={environment}, made on {when} by `make diag`.

{files}
Redacted: everything in secrets/{environment}/, in clear and encoded; values of variables with names such as PASSWORD,
TOKEN, SECRET or KEY; users and passwords in URLs. The finished archive was searched for all of secrets/ once more.
It has no payloads, arguments or results of jobs, unless your tasks write them to the log or into the text of an error.
Names of hosts, users, paths and images are in it. Before you send it, look at logs/ and env/.
"""


@dataclass(frozen=True)
class Source:
    """A file of the archive, the command that prints it, and what is made of that."""

    file: str
    argv: list[str]
    made: Callable[[str], str] = str


def write(stack: Stack, _: argparse.Namespace) -> int:
    """Write the archive, which its owner alone can read. Raises ``ConfigurationError`` where a secret is in it."""
    path = ROOT / ".local" / f"diag-{stack.name}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    if stack.dry_run:
        for source in sources(stack):
            print(shlex.join(source.argv), flush=True)
    stack.change(f"write {path.relative_to(ROOT)}", lambda: _write(stack, path))
    if not stack.dry_run:
        print(path.relative_to(ROOT))
        say("secrets are redacted; before you send it, look at what its README.txt says")
    return 0


def sources(stack: Stack) -> Iterator[Source]:
    """Give what is asked: of the checkout, of the machine and, where there is an engine that answers, of the stack."""
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
        yield Source("health.json", inside.app_command(stack, ["health", "status", "--json"], terminal=False))
    if "redis" in running:
        for file, arguments, made in (
            ("info.txt", ["info", "everything"], str),
            ("config.txt", ["--json", "config", "get", "*"], str),
            ("acl.txt", ["acl", "list"], _without_hashes),
            ("slowlog.json", ["--json", "slowlog", "get", "128"], _without_arguments),
        ):
            yield Source(f"redis/{file}", commands.redis_cli(stack.environment, arguments, terminal=False), made)


def leaks(archive: Path, redactor: Redactor) -> list[str]:
    """Return the files of an archive in which there is a secret."""
    with tarfile.open(archive) as tar:
        texts = ((each.name, tar.extractfile(each)) for each in tar)
        return [name for name, file in texts if file and redactor.finds(f"{name}\n{_text(file.read())}")]


def _write(stack: Stack, path: Path) -> None:
    secrets = secrets_of(stack.environment.secrets, stack.environment.values)
    redactor = Redactor(secrets)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as raw:
            _archive(stack, raw, path.name.removesuffix(".tar.gz"), redactor.clean)
        # Whoever changed a secret meanwhile, or whatever was not thought of: better no archive.
        again = Redactor(secrets | secrets_of(stack.environment.secrets, stack.environment.values))
        if found := leaks(partial, again):
            raise ConfigurationError(f"no archive was written: there is a secret in {', '.join(found)} of it")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _archive(stack: Stack, raw: io.BufferedWriter, folder: str, clean: Callable[[str], str]) -> None:
    described = []
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:

        def add(name: str, text: str, about: str) -> None:
            data = clean(text).encode()
            entry = tarfile.TarInfo(f"{folder}/{clean(name)}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            tar.addfile(entry, io.BytesIO(data))
            described.append(f"  {clean(name):34} {clean(about)}")

        for file in stack.environment.files:
            add(f"env/{file.name}", file.read_text(errors="replace"), "as it is here")
        add("events.txt", _events(stack), "what happened in the last days: `make events`")
        if (done := journal.path(stack.name)).exists():
            add("journal.txt", done.read_text(errors="replace"), "what people did by `make`")
        for source in sources(stack):
            code, text = _ask(stack, source.argv)
            add(source.file, text if code else source.made(text), _told(stack, source.argv, code))
        when = time.strftime("%Y-%m-%d %H:%M:%S %z")
        listed = "".join(f"{line}\n" for line in described)
        add("README.txt", README.format(environment=stack.name, when=when, files=listed), "")


def _told(stack: Stack, argv: list[str], code: int) -> str:
    text = shlex.join(argv).replace(shlex.join(commands.compose(stack.environment)), "docker compose")
    short = text if len(text) <= 80 else f"{text[:79]}…"
    return f"{short}{f' FAILED: {code}' if code else ''}"


def _ask(stack: Stack, argv: list[str]) -> tuple[int, str]:
    """Return a command's exit code and all that it prints; -1 and the reason where it cannot be had."""
    try:
        done = stack.ask(argv, within_s=WITHIN_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, f"{error}\n"
    return done.returncode, done.stdout + done.stderr


def _answers(stack: Stack) -> bool:
    """Whether there is an engine to ask more of: each question to one that hangs would take its time."""
    return _ask(stack, VERSION)[0] == 0


def _events(stack: Stack) -> str:
    try:
        if not _answers(stack):
            raise ConfigurationError("no Docker engine answers")
        return "".join(f"{event}\n" for event in events.gather(stack, time.time() - EVENTS_S))
    except (ConfigurationError, OSError, ValueError) as error:
        return f"{error}\n"


def _words(stack: Stack, argv: list[str]) -> list[str]:
    code, text = _ask(stack, argv)
    return [] if code else text.split()


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _without_hashes(acl: str) -> str:
    """Passwords' hashes that are not of secrets/, too."""
    return _ACL_HASH.sub("#[redacted]", acl)


def _without_arguments(slow: str) -> str:
    """Of a slow command, its name and its key: the rest may be a payload."""
    try:
        entries = json.loads(slow)
    except ValueError as error:
        return f"not JSON: {error}\n"
    return json.dumps([[*entry[:3], entry[3][:2]] for entry in entries], indent=1)
