"""Checks of the merged configuration against the rules of the design, because one layer can undo another."""

import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ...config import ROOT, envfile
from ...config.limits import FORK_ROOM, has_room_to_fork, least_grace_s
from ...config.units import MIB, seconds, size
from ...engine import capacity
from .facts import Facts, service_of
from .finding import Finding, Unavailable, fail, ok, warn

REDIS_CONF = "redis/redis.conf"
LOOPBACK = ("127.0.0.1", "::1")
#: Fewer names than are redacted: TOKEN_DAYS is no secret.
_SECRET = re.compile(r"(PASSWORD|PASSWD|_PASS|SECRET|TOKEN|_KEYS?|APIKEY|CREDENTIALS?|DSN)$")
_LOGIN = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def environment(facts: Facts) -> Finding:
    files = ", ".join(file.name for file in facts.environment.files)
    return ok(f"{files}; {facts.environment.values['COMPOSE_FILE']}")


def secrets_in_env_files(facts: Facts) -> Finding:
    found = []
    for file in facts.environment.files:
        found += [
            f"{name} in {file.name}"
            for name, value in envfile.read(file).items()
            if value and (_SECRET.search(name) or _LOGIN.search(value))
        ]
    if found:
        return fail(f"{', '.join(found)}: every container shows it", f"move it to a file in secrets/{facts.name}/")
    return ok("none")


def secrets_in_git(facts: Facts) -> Finding | None:
    listed = facts.ask("git", "ls-files", "--", "secrets", "env/*.local.env")
    if listed.returncode:
        return None  # it is no checkout
    if files := listed.stdout.split():
        fix = f"git rm --cached {shlex.join(files)}; then make secrets-rotate"
        return fail(f"git has {', '.join(files)}", fix)
    return ok("none")


def hardening(facts: Facts) -> Finding:
    services = facts.model["services"]
    loose = [f"{name}: {', '.join(lacks)}" for name, each in services.items() if (lacks := list(lacking(each)))]
    if loose:
        return warn(f"without {'; '.join(loose)}", "have it extend `hardened` of compose/common.yml")
    return ok(f"{', '.join(services)}: no root, no capabilities, read-only, limits, health checks")


def lacking(service: dict[str, Any]) -> Iterator[str]:
    """Give what a service lacks of `hardened`."""
    for key in ("init", "read_only"):
        if not service.get(key):
            yield key
    if service.get("privileged") or service.get("cap_add") or "ALL" not in service.get("cap_drop", []):
        yield "cap_drop"
    if not any(option.startswith("no-new-privileges") for option in service.get("security_opt", [])):
        yield "no-new-privileges"
    if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
        yield "user"
    yield from (f"limit of {key}" for key in ("cpus", "memory", "pids") if key not in capacity.limits(service))
    if service.get("healthcheck", {"disable": True}).get("disable"):
        yield "healthcheck"
    if "max-size" not in service.get("logging", {}).get("options", {}):
        yield "log rotation"


def published_ports(facts: Facts) -> Finding:
    """Docker's rules bypass the host's firewall, so a port beyond the loopback interface is open to the world."""
    open_ = [f"{name} {port['published']}" for name, port in ports(facts) if port.get("host_ip") not in LOOPBACK]
    if open_:
        fix = 'write "127.0.0.1:PORT:PORT" in the layer that publishes it'
        return fail(f"published beyond 127.0.0.1, past the firewall: {', '.join(open_)}", fix)
    there = ", ".join(f"{name} 127.0.0.1:{port['published']}" for name, port in ports(facts))
    return ok(there or "none is published")


def free_ports(facts: Facts) -> Finding:
    running = {service_of(each) for each in facts.containers if each["State"]["Running"]}
    wanted = [(name, int(port["published"])) for name, port in ports(facts) if name not in running]
    if taken := [f"{port} for {name}" for name, port in wanted if is_taken(port)]:
        return fail(f"another program has {', '.join(taken)}", f"set REDIS_PORT in env/{facts.name}.local.env")
    return ok("free, or ours")


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports(facts: Facts) -> list[tuple[str, dict[str, Any]]]:
    services = facts.model["services"].items()
    return [(name, port) for name, each in services for port in each.get("ports", []) if port.get("published")]


def pinned_images(facts: Facts) -> Finding | None:
    """A tag can move. Images that are built here are our own, and a stand-in built from packages has no digest."""
    if facts.environment.values["APP_ENV"] != "prod":
        return None
    found = {each["image"] for each in facts.model["services"].values() if "build" not in each}
    loose = [name for name in sorted(found) if "@" not in name and not is_stand_in(facts.images.get(name))]
    if not loose:
        return ok(", ".join(sorted(found)))
    digests = [digest for name in loose for digest in (facts.images.get(name) or {}).get("RepoDigests") or []]
    fix = f"name {digests[0]} in env/{facts.name}.env" if digests else "pull it, and name its digest: NAME@sha256:…"
    return warn(f"{', '.join(loose)}: what a tag names may change", fix)


def is_stand_in(image: dict[str, Any] | None) -> bool:
    return image is not None and (image["Config"]["Labels"] or {}).get("aegis.stand-in") == "true"


def drain(facts: Facts) -> Finding:
    """The env files are checked when they are read, but a layer may say something else."""
    for name in facts.workers:
        service = facts.model["services"][name]
        wait, grace = int(service["environment"]["WORKER_JOB_COMPLETION_WAIT"]), seconds(service["stop_grace_period"])
        if grace < (least := least_grace_s(wait)):
            fix = f"WORKER_STOP_GRACE_SECONDS={least} in env/{facts.name}.env, and no stop_grace_period in a layer"
            return fail(f"{name} drains for {wait} s, and is killed after {grace:g} s", fix)
    return ok(f"{wait} s, killed after {grace:g} s" if facts.workers else "no workers")


def redis_memory_limit(facts: Facts) -> Finding | None:
    wanted = redis_settings(facts)
    limit = int(capacity.limits(facts.model["services"].get("redis", {})).get("memory", 0))
    if not limit:
        return None
    most = size(wanted.get("maxmemory", "0")) or 0
    fact = f"maxmemory {most // MIB} MiB, limit {limit // MIB} MiB"
    if not most or not has_room_to_fork(most, limit):
        fix = f"set REDIS_MAXMEMORY, and REDIS_MEMORY_LIMIT of {FORK_ROOM} times as much, in env/{facts.name}.env"
        return fail(f"{fact}: a save has no room, and the kernel ends Redis", fix)
    return ok(fact)


def redis_rules(facts: Facts) -> Finding:
    """The settings that queues need."""
    wanted = redis_settings(facts)
    broken = []
    if wanted.get("maxmemory-policy") != "noeviction":
        broken.append("maxmemory-policy noeviction")
    if wanted.get("appendonly") != "yes":
        broken.append("appendonly yes")
    if not {"K", "z"} <= set(wanted.get("notify-keyspace-events", "").replace("A", "z")):
        broken.append("notify-keyspace-events Kz")
    if broken:
        return fail(f"{REDIS_CONF} does not say {', '.join(broken)}: jobs are lost, or late", f"edit {REDIS_CONF}")
    return ok("noeviction, append-only file, keyspace events")


def redis_settings(facts: Facts) -> dict[str, str]:
    """Return Redis's configured settings: those of its file, and its arguments above them."""
    if service := facts.model["services"].get("redis"):
        return settings((ROOT / REDIS_CONF).read_text(), service["command"])
    raise Unavailable


def settings(file: str, command: Sequence[str]) -> dict[str, str]:
    """Return the settings of a file of Redis, with its arguments ``--name value`` above them."""
    found = {}
    for line in file.splitlines():
        if line.strip() and not line.startswith("#"):
            name, *values = shlex.split(line)
            found[name] = " ".join(values)
    return found | {name.removeprefix("--"): value for name, value in pairwise(command) if name.startswith("--")}


CHECKS = (
    environment, secrets_in_env_files, secrets_in_git, hardening, published_ports, free_ports, pinned_images, drain,
    redis_memory_limit, redis_rules,
)  # fmt: skip
