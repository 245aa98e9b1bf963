"""What the env files say, checked before anything is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from . import envfile

ROOT = Path(__file__).resolve().parents[1]

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_BASE, _TLS, _LAST = "compose/base.yml", "compose/tls.yml", "compose/queues.yml"
_SECURE_NETWORK = "compose/secure-network.yml"
_QUEUES = Path("app", "components", "worker", "queues")
_SLIP = 0.9  #: how alike two names are of which one is a slip of the other
_HOST = re.compile(r"[A-Za-z0-9*.:_-]+")
_PORT = "|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"  #: or none
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_RULES = [
    (re.compile(names), re.compile(allowed), meaning)
    for names, allowed, meaning in (
        ("COMPOSE_PROJECT_NAME", "[a-z0-9][a-z0-9_-]*", "small letters, digits, - and _"),
        ("(PYTHON|REDIS|APP)_IMAGE", r"[\w./:@-]+", "the name of an image, as in redis:8-alpine"),
        ("APP_VERSION", r"\w[\w.-]{0,127}", "the tag of an image, as in 1.0"),
        (".*_REPLICAS", "[0-9]{1,4}", "a number of replicas, 0 to 9999"),
        (".*_CPU_(LIMIT|RESERVATION)", r"(?=.*[1-9])[0-9]+(\.[0-9]+)?", "a number of CPUs, more than 0, as in 0.5"),
        (
            ".*_(MEMORY_LIMIT|MEMORY_RESERVATION|MAXMEMORY)",
            "(?i:(?=.*[1-9])[0-9]+[kmg]?b?)",
            "an amount of memory: a number and k, m or g, as in 512m",
        ),
        ("LOG_MAX_SIZE", "[1-9][0-9]*[kmg]", "a size: a number and k, m or g, as in 10m"),
        ("LOG_MAX_FILES", "[1-9][0-9]*", "a number of files, 1 or more"),
        ("REDIS_PORT", _PORT, "a port from 1 to 65535"),
        ("REDIS_DB", "[0-9]+", "the number of a database, 0 or more"),
        ("REDIS_APPENDFSYNC", "everysec|always|no", "everysec, always or no"),
        ("REDIS_TLS_CLIENTS", "no|optional|yes", "no, optional or yes"),
        ("WORKER_EGRESS", "on|off", "on or off"),
        ("RESTART_POLICY", "unless-stopped|always|on-failure|no", "unless-stopped, always, on-failure or no"),
        ("(HEALTHCHECK_INTERVAL|WORKER_STOP_GRACE)_SECONDS", "[1-9][0-9]*", "a whole number of seconds, 1 or more"),
        ("WORKER_JOB_COMPLETION_WAIT", "[0-9]+", "a whole number of seconds, 0 or more"),
    )
]
STOP_MARGIN_S = 12  #: between the end of a drain and Docker's kill, as the library's settings explain
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
        return _listed(self.values["REDIS_TLS_NAMES"])


def names(folder: Path = ROOT / "env") -> list[str]:
    """Return the environments that there are: each ``env/NAME.env`` is one."""
    found = (path.name.removesuffix(".env") for path in folder.glob("*.env"))
    return sorted(name for name in found if name != "base" and _NAME.fullmatch(name))


def load(name: str, *, root: Path = ROOT, shell: Mapping[str, str] = os.environ) -> Environment:
    """Read and check an environment. Raises ``ConfigurationError`` with every problem that was found."""
    if not _NAME.fullmatch(name) or name == "base":
        raise ConfigurationError(f"ENV={name}: an environment's name is of small letters, digits and -, and not base")
    if name not in (there := names(root / "env")):
        raise ConfigurationError(f"ENV={name}: there is no env/{name}.env; there are: {', '.join(there)}")
    local = root / "env" / f"{name}.local.env"
    files = (root / "env" / "base.env", root / "env" / f"{name}.env", *([local] if local.exists() else []))
    values: dict[str, str] = {}
    documented: frozenset[str] = frozenset()
    problems: list[str] = []
    for file in files:
        where = str(file.relative_to(root))
        read, bad = _read(file, where)
        problems += bad
        if values:
            problems += _unknown(read, documented, where)
        else:
            documented = frozenset(read)
        values |= read
        problems += [
            f"{where}: {secret} does not go into env files: see secrets/{name}/"
            for secret in ("REDIS_PASSWORD", "WORKER_SIGNING_KEY")
            if secret in read
        ]
    values |= {key: shell[key] for key in values if key in shell and key != "ENV"}
    problems += _problems(name, values, root)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Environment(name, files, values)


def _read(file: Path, name: str) -> tuple[dict[str, str], list[str]]:
    """Return what a file says, and what is wrong with it; ``name`` is what messages call it."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        return {}, [f"{name}:{number}: not UTF-8: save the file as UTF-8"]
    except OSError as error:
        return {}, [f"{name}: cannot be read: {error.strerror}"]
    values, bad = envfile.parse(text)
    return values, [f"{name}:{number}: {said}" for number, said in bad]


def _problems(name: str, values: Mapping[str, str], root: Path) -> list[str]:
    problems = [
        f"{key}={value}: it is {meaning}"
        for key, value in values.items()
        for names, allowed, meaning in _RULES
        if names.fullmatch(key) and not allowed.fullmatch(value)
    ]
    if values.get("ENV") != name:
        problems.append(f"ENV={values.get('ENV', '')} in env/{name}.env: it has to be its own name, ENV={name}")
    if not values.get("COMPOSE_FILE"):
        problems.append(f"COMPOSE_FILE is missing in env/{name}.env: copy it from env/prod.env and change it")
    if "COMPOSE_PROJECT_NAME" not in values:
        problems.append(f"COMPOSE_PROJECT_NAME is missing in env/{name}.env: copy it from env/prod.env and change it")
    project = values.get("COMPOSE_PROJECT_NAME")
    for other in names(root / "env"):
        files = (root / "env" / f"{other}.env", root / "env" / f"{other}.local.env")
        theirs: dict[str, str] = {}
        for file in filter(Path.is_file, files):
            theirs |= envfile.parse(file.read_text(errors="replace"))[0]
        if project and other != name and theirs.get("COMPOSE_PROJECT_NAME") == project:
            problems.append(f"COMPOSE_PROJECT_NAME={project} is ENV={other}'s: two would be one stack")
    layers = values.get("COMPOSE_FILE", "").split(":")
    problems += _layer_problems(list(filter(None, layers)), root)

    tls = _TLS in layers
    if tls and values.get("REDIS_SSL") != "true":
        problems.append(f"COMPOSE_FILE names {_TLS}, so it needs REDIS_SSL=true, or workers do not speak TLS")
    if not tls and values.get("REDIS_SSL") == "true" and values.get("REDIS_URL") == "redis://redis:6379":
        problems.append(f"REDIS_SSL=true needs {_TLS} in COMPOSE_FILE, or Redis does not speak TLS")
    for host in _listed(values.get("REDIS_TLS_NAMES", "")):
        if not _HOST.fullmatch(host):
            problems.append(f"REDIS_TLS_NAMES: {host} is neither a name nor an address")
    queues = sorted(path.stem for path in (root / _QUEUES).glob("[!_]*.py"))
    for queue in _listed(values.get("WORKER_QUEUES", "")):
        if queue not in queues:
            problems.append(f"WORKER_QUEUES: unknown queue {queue}: the queues are {', '.join(queues)}")

    if values.get("WORKER_EGRESS") == "off" and _SECURE_NETWORK not in layers:
        problems.append(
            f"WORKER_EGRESS=off needs {_SECURE_NETWORK} in COMPOSE_FILE, or workers go out by Redis's network"
        )
    if values.get("BACKUP_AGE_RECIPIENT") and values.get("BACKUP_GPG_RECIPIENT"):
        problems.append(
            "BACKUP_AGE_RECIPIENT and BACKUP_GPG_RECIPIENT are set: an archive is encrypted with one of them"
        )

    wait, grace = (values.get(key, "") for key in ("WORKER_JOB_COMPLETION_WAIT", "WORKER_STOP_GRACE_SECONDS"))
    if wait.isdecimal() and grace.isdecimal() and int(wait) + STOP_MARGIN_S > int(grace):
        problems.append(
            f"WORKER_JOB_COMPLETION_WAIT={wait} has to be less than WORKER_STOP_GRACE_SECONDS={grace} by "
            f"{STOP_MARGIN_S} s, or Docker kills a worker that has yet to give jobs back and shut down: set "
            f"WORKER_STOP_GRACE_SECONDS={int(wait) + STOP_MARGIN_S} or more"
        )
    limit, most = (size(values.get(key, "")) for key in ("REDIS_MEMORY_LIMIT", "REDIS_MAXMEMORY"))
    if limit is not None and most is not None and most * FORK_ROOM > limit:
        problems.append(
            f"REDIS_MAXMEMORY={values['REDIS_MAXMEMORY']} needs REDIS_MEMORY_LIMIT of {FORK_ROOM} times as much, for "
            f"the fork of a save; it is {values['REDIS_MEMORY_LIMIT']}"
        )
    limit, sure = (size(values.get(f"WORKER_MEMORY_{key}", "")) for key in ("LIMIT", "RESERVATION"))
    if limit is not None and sure is not None and sure > limit:
        problems.append(
            f"WORKER_MEMORY_RESERVATION={values['WORKER_MEMORY_RESERVATION']} is more than "
            f"WORKER_MEMORY_LIMIT={values['WORKER_MEMORY_LIMIT']}"
        )
    return problems


def _layer_problems(layers: list[str], root: Path) -> list[str]:
    problems = []
    there = sorted(path.name for path in (root / "compose").glob("*.yml") if path.name != "common.yml")
    for layer in dict.fromkeys(layers):
        if layers.count(layer) > 1:
            problems.append(f"COMPOSE_FILE names {layer} twice")
        if Path(layer).is_absolute() or ".." in Path(layer).parts:
            problems.append(f"COMPOSE_FILE names {layer}: a layer is a file of this checkout, as in compose/dev.yml")
        elif not (root / layer).is_file() or Path(layer).name == "common.yml":
            problems.append(
                f"COMPOSE_FILE names {layer}, which is {'no layer' if (root / layer).exists() else 'not there'}; "
                f"compose/ has {', '.join(there)}"
            )
    if layers and layers[0] != _BASE:
        problems.append(f"COMPOSE_FILE begins with {layers[0]}: {_BASE} has to come first, as the others change it")
    if _LAST in layers[:-1] and any(layer.startswith("compose/") for layer in layers[layers.index(_LAST) + 1 :]):
        problems.append(f"COMPOSE_FILE names {_LAST} before {layers[-1]}: it has to come behind the other layers")
    return problems


def _unknown(values: Iterable[str], documented: Iterable[str], name: str) -> list[str]:
    """Return a line for each variable that looks like a slip of one of ours; others are a team's own."""
    known = {*documented, "ENV", "COMPOSE_PROJECT_NAME", "COMPOSE_FILE"}
    return [
        f"{name}: {key} is not in env/base.env: did you mean {close[0]}? A variable of your own is written there, too"
        for key in values
        if key not in known and (close := get_close_matches(key, known, 1, _SLIP))
    ]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def size(text: str) -> int | None:
    """Return the bytes of an amount such as ``512M`` or ``256mb``, None where it is none."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)b?", text.strip().lower())
    return int(match[1]) * _UNITS[match[2]] if match else None


def write(file: Path, key: str, value: str) -> None:
    """Set one variable in an env file, in place where it stands, else at its end; other lines stay."""
    lines = file.read_text().splitlines() if file.exists() else ["# What this machine changes of the environment."]
    line = f"{key}={value}"
    written = [line if key in envfile.parse(each)[0] else each for each in lines]
    partial = file.with_suffix(".partial")
    partial.write_text("\n".join([*written, *([] if line in written else [line])]) + "\n")
    partial.replace(file)
