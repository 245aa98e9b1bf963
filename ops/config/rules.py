"""The rules for what env files say. Each rule gives a line for each problem, and the line names the variable."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from . import envfile
from .environment import TLS, Environment, names
from .limits import FORK_ROOM, STOP_MARGIN_S, has_room_to_fork, least_grace_s
from .units import size

_BASE, _SECURE_NETWORK, _QUEUES = "compose/base.yml", "compose/secure-network.yml", "compose/queues.yml"
_QUEUE_MODULES = Path("app", "components", "worker", "queues")
_HOST = re.compile(r"[A-Za-z0-9*.:_-]+")
_PORT = "|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"  #: or none
_VALUES = (
    ("COMPOSE_PROJECT_NAME", "[a-z0-9][a-z0-9_-]*", "lower-case letters, digits, - and _"),
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


def values_are_allowed(environment: Environment) -> Iterator[str]:
    for variable, value in environment.values.items():
        for variables, allowed, meaning in _VALUES:
            if re.fullmatch(variables, variable) and not re.fullmatch(allowed, value):
                yield f"{variable}={value}: it has to be {meaning}"


def names_itself(environment: Environment) -> Iterator[str]:
    name, where = environment.name, f"in env/{environment.name}.env"
    if environment.get("ENV") != name:
        yield f"ENV={environment.get('ENV')} {where}: it has to be its own name, ENV={name}"
    if not environment.layers:
        yield f"COMPOSE_FILE is missing {where}: copy it from env/prod.env and change it"
    if "COMPOSE_PROJECT_NAME" not in environment.values:
        yield f"COMPOSE_PROJECT_NAME is missing {where}: copy it from env/prod.env and change it"


def project_is_its_own(environment: Environment) -> Iterator[str]:
    project, folder = environment.get("COMPOSE_PROJECT_NAME"), environment.root / "env"
    for other in names(environment.root):
        theirs = envfile.read(folder / f"{other}.env") | envfile.read(folder / f"{other}.local.env")
        if project and other != environment.name and theirs.get("COMPOSE_PROJECT_NAME") == project:
            yield f"COMPOSE_PROJECT_NAME={project} is also that of ENV={other}: the two would be one stack"


def layers_are_files(environment: Environment) -> Iterator[str]:
    there = sorted(path.name for path in (environment.root / "compose").glob("*.yml") if path.name != "common.yml")
    for layer in dict.fromkeys(environment.layers):
        if environment.layers.count(layer) > 1:
            yield f"COMPOSE_FILE names {layer} twice"
        if Path(layer).is_absolute() or ".." in Path(layer).parts:
            yield f"COMPOSE_FILE names {layer}: a layer is a file of this checkout, as in compose/dev.yml"
        elif not (environment.root / layer).is_file() or Path(layer).name == "common.yml":
            what = "no layer" if (environment.root / layer).exists() else "not there"
            yield f"COMPOSE_FILE names {layer}, which is {what}; compose/ has {', '.join(there)}"


def layers_are_in_order(environment: Environment) -> Iterator[str]:
    layers = environment.layers
    if layers and layers[0] != _BASE:
        yield f"COMPOSE_FILE begins with {layers[0]}: {_BASE} has to come first, as the others change it"
    later = layers[layers.index(_QUEUES) + 1 :] if _QUEUES in layers else []
    if any(layer.startswith("compose/") for layer in later):
        yield f"COMPOSE_FILE names {_QUEUES} before {layers[-1]}: it has to come after the other layers"


def tls_is_on_at_both_ends(environment: Environment) -> Iterator[str]:
    layer, ssl = TLS in environment.layers, environment.get("REDIS_SSL") == "true"
    if layer and not ssl:
        yield f"COMPOSE_FILE names {TLS}, so it needs REDIS_SSL=true, or workers do not speak TLS"
    if ssl and not layer and environment.get("REDIS_URL") == "redis://redis:6379":
        yield f"REDIS_SSL=true needs {TLS} in COMPOSE_FILE, or Redis does not speak TLS"
    for host in environment.listed("REDIS_TLS_NAMES"):
        if not _HOST.fullmatch(host):
            yield f"REDIS_TLS_NAMES: {host} is neither a name nor an address"


def queues_are_known(environment: Environment) -> Iterator[str]:
    queues = sorted(path.stem for path in (environment.root / _QUEUE_MODULES).glob("[!_]*.py"))
    for queue in environment.listed("WORKER_QUEUES"):
        if queue not in queues:
            yield f"WORKER_QUEUES: unknown queue {queue}: the queues are {', '.join(queues)}"


def egress_can_be_closed(environment: Environment) -> Iterator[str]:
    if environment.get("WORKER_EGRESS") == "off" and _SECURE_NETWORK not in environment.layers:
        yield f"WORKER_EGRESS=off needs {_SECURE_NETWORK} in COMPOSE_FILE, or workers go out by Redis's network"


def backups_have_one_recipient(environment: Environment) -> Iterator[str]:
    if environment.get("BACKUP_AGE_RECIPIENT") and environment.get("BACKUP_GPG_RECIPIENT"):
        yield "BACKUP_AGE_RECIPIENT and BACKUP_GPG_RECIPIENT are set: an archive is encrypted with one of them"


def grace_is_longer_than_the_drain(environment: Environment) -> Iterator[str]:
    drain, grace = (
        environment.get("WORKER_JOB_COMPLETION_WAIT"),
        environment.get("WORKER_STOP_GRACE_SECONDS"),
    )
    if drain.isdecimal() and grace.isdecimal() and int(grace) < (least := least_grace_s(int(drain))):
        yield (
            f"WORKER_JOB_COMPLETION_WAIT={drain} has to be less than WORKER_STOP_GRACE_SECONDS={grace} by "
            f"{STOP_MARGIN_S} s. Else Docker kills a worker before it has given its jobs back and shut down: set "
            f"WORKER_STOP_GRACE_SECONDS={least} or more"
        )


def memory_fits(environment: Environment) -> Iterator[str]:
    maxmemory, limit = environment.get("REDIS_MAXMEMORY"), environment.get("REDIS_MEMORY_LIMIT")
    most, room = size(maxmemory), size(limit)
    if most is not None and room is not None and not has_room_to_fork(most, room):
        yield (
            f"REDIS_MAXMEMORY={maxmemory} needs REDIS_MEMORY_LIMIT of {FORK_ROOM} times as much, for the fork of a "
            f"save; it is {limit}"
        )
    reservation, limit = (
        environment.get("WORKER_MEMORY_RESERVATION"),
        environment.get("WORKER_MEMORY_LIMIT"),
    )
    reserved, room = size(reservation), size(limit)
    if reserved is not None and room is not None and reserved > room:
        yield f"WORKER_MEMORY_RESERVATION={reservation} is more than WORKER_MEMORY_LIMIT={limit}"


RULES: tuple[Callable[[Environment], Iterator[str]], ...] = (
    values_are_allowed, names_itself, project_is_its_own, layers_are_files, layers_are_in_order,
    tls_is_on_at_both_ends, queues_are_known, egress_can_be_closed, backups_have_one_recipient,
    grace_is_longer_than_the_drain, memory_fits,
)  # fmt: skip
