"""What the env files say, checked before anything is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_TLS = "compose/tls.yml"
_HOST = re.compile(r"[A-Za-z0-9*.:_-]+")
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
FORK_ROOM = 1.5  #: Redis's memory limit over its maxmemory: a save forks, and what changes meanwhile is there twice


class ConfigurationError(Exception):
    """One line a problem, each naming what to mend."""


@dataclass(frozen=True)
class Environment:
    """One environment: its name, the files that make it and the values they give, the shell's above all."""

    name: str
    files: tuple[Path, ...]
    values: Mapping[str, str]

    @property
    def local_file(self) -> Path:
        """Where what this machine changes of the environment is written down."""
        return self.files[0].with_name(f"{self.name}.local.env")

    @property
    def secrets(self) -> Path:
        return ROOT / "secrets" / self.name

    @property
    def layers(self) -> list[Path]:
        return [ROOT / layer for layer in self.values["COMPOSE_FILE"].split(":")]

    @property
    def tls(self) -> bool:
        """Whether Redis speaks TLS, with certificates of our own."""
        return _TLS in self.values["COMPOSE_FILE"].split(":")

    @property
    def redis_names(self) -> list[str]:
        """More names and addresses of Redis, for its certificate."""
        return _hosts(self.values["REDIS_TLS_NAMES"])


def names(folder: Path = ROOT / "env") -> list[str]:
    """Return the environments that there are: each ``env/NAME.env`` is one."""
    found = (path.name.removesuffix(".env") for path in folder.glob("*.env"))
    return sorted(name for name in found if name != "base" and not name.endswith(".local"))


def load(name: str, *, root: Path = ROOT, shell: Mapping[str, str] = os.environ) -> Environment:
    """Read and check an environment. Raises ``ConfigurationError`` with every problem that was found."""
    if not _NAME.fullmatch(name) or name not in names(root / "env"):
        raise ConfigurationError(f"ENV={name}: there is no env/{name}.env; there are: {', '.join(names(root / 'env'))}")
    local = root / "env" / f"{name}.local.env"
    files = (root / "env" / "base.env", root / "env" / f"{name}.env", *([local] if local.exists() else []))
    values: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        read, bad = parse(file.read_text())
        values |= read
        problems += [f"{file.relative_to(root)}:{number}: not NAME=value: {line}" for number, line in bad]
        problems += [
            f"{file.relative_to(root)}: {secret} does not go into env files: see secrets/{name}/"
            for secret in ("REDIS_PASSWORD", "WORKER_SIGNING_KEY")
            if secret in read
        ]
    values |= {key: shell[key] for key in values if key in shell and key != "ENV"}
    problems += _problems(name, values, root)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Environment(name, files, values)


def parse(text: str) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Read an env file's lines. Return its values, and the lines with their numbers that are none."""
    values: dict[str, str] = {}
    bad = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if match := _LINE.fullmatch(line):
            values[match[1]] = match[2].strip().strip("\"'").replace("$$", "$")
        else:
            bad.append((number, line))
    return values, bad


def _problems(name: str, values: Mapping[str, str], root: Path) -> list[str]:
    problems = []
    if values.get("ENV") != name:
        problems.append(f"ENV={values.get('ENV', '')} in env/{name}.env: it has to be its own name, ENV={name}")
    for key in ("COMPOSE_PROJECT_NAME", "COMPOSE_FILE"):
        if not values.get(key):
            problems.append(f"{key} is missing in env/{name}.env: copy it from env/prod.env and change it")
    for layer in filter(None, values.get("COMPOSE_FILE", "").split(":")):
        if not (root / layer).is_file():
            there = ", ".join(sorted(path.name for path in (root / "compose").glob("*.yml")))
            problems.append(f"COMPOSE_FILE names {layer}, which is not there; compose/ has {there}")

    tls = _TLS in values.get("COMPOSE_FILE", "").split(":")
    if tls and values.get("REDIS_SSL") != "true":
        problems.append(f"COMPOSE_FILE names {_TLS}, so it needs REDIS_SSL=true, or workers do not speak TLS")
    if not tls and values.get("REDIS_SSL") == "true" and values.get("REDIS_URL") == "redis://redis:6379":
        problems.append(f"REDIS_SSL=true needs {_TLS} in COMPOSE_FILE, or Redis does not speak TLS")
    if values.get("REDIS_TLS_CLIENTS") not in ("no", "optional", "yes"):
        problems.append(f"REDIS_TLS_CLIENTS={values.get('REDIS_TLS_CLIENTS', '')}: it is no, optional or yes")
    for host in _hosts(values.get("REDIS_TLS_NAMES", "")):
        if not _HOST.fullmatch(host):
            problems.append(f"REDIS_TLS_NAMES: {host} is neither a name nor an address")

    if values.get("BACKUP_AGE_RECIPIENT") and values.get("BACKUP_GPG_RECIPIENT"):
        problems.append(
            "BACKUP_AGE_RECIPIENT and BACKUP_GPG_RECIPIENT are set: an archive is encrypted with one of them"
        )

    wait, grace = (values.get(key, "") for key in ("WORKER_JOB_COMPLETION_WAIT", "WORKER_STOP_GRACE_SECONDS"))
    if wait.isdigit() and grace.isdigit() and int(wait) >= int(grace):
        problems.append(
            f"WORKER_JOB_COMPLETION_WAIT={wait} has to be less than WORKER_STOP_GRACE_SECONDS={grace}, "
            "or Docker kills a worker that still drains"
        )
    for key, value in values.items():
        if key.endswith("_REPLICAS") and not value.isdigit():
            problems.append(f"{key}={value}: a number of replicas is 0 or more")
        if key.endswith(("_MEMORY_LIMIT", "_MAXMEMORY")) and size(value) is None:
            problems.append(f"{key}={value}: an amount of memory is a number and k, m or g, as in 512m")
    limit, most = (size(values.get(key, "")) for key in ("REDIS_MEMORY_LIMIT", "REDIS_MAXMEMORY"))
    if limit is not None and most is not None and most * FORK_ROOM > limit:
        problems.append(
            f"REDIS_MAXMEMORY={values['REDIS_MAXMEMORY']} needs REDIS_MEMORY_LIMIT of {FORK_ROOM} times as much, for "
            f"the fork of a save; it is {values['REDIS_MEMORY_LIMIT']}"
        )
    return problems


def _hosts(text: str) -> list[str]:
    return [host.strip() for host in text.split(",") if host.strip()]


def size(text: str) -> int | None:
    """Return the bytes of an amount such as ``512M`` or ``256mb``, None where it is none."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)b?", text.strip().lower())
    return int(match[1]) * _UNITS[match[2]] if match else None


def write(file: Path, key: str, value: str) -> None:
    """Set one variable in an env file, in place where it stands, else at its end; other lines stay."""
    lines = file.read_text().splitlines() if file.exists() else ["# What this machine changes of the environment."]
    kept = [line for line in lines if not line.startswith(f"{key}=")]
    partial = file.with_suffix(".partial")
    partial.write_text("\n".join([*kept, f"{key}={value}"]) + "\n")
    partial.replace(file)
