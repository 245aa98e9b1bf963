"""Checks of a Redis that runs, and of the queues in it."""

from typing import Any

from ...config import units
from ...config.units import MIB
from ...engine import capacity, services
from ...engine.stack import is_worker
from ...secrets.passwords import ACL
from .facts import Facts, hashes
from .finding import Finding, fail, ok, warn
from .rules import redis_settings

FULL, FULL_SOON = 1.0, 0.8  #: parts of what there is
SKEW_S = 2
WAITS_LONG_S = 60


def redis(facts: Facts) -> Finding:
    info = facts.redis["info"]
    server = info.get("server_name", "redis")  # Valkey tells its own version, and the version of Redis that it is like
    version = info.get(f"{server}_version", info["redis_version"])
    return ok(f"{server.capitalize()} {version}, up for {int(info['uptime_in_seconds'])} s")


def redis_clock(facts: Facts) -> Finding:
    skew = facts.redis["skew"]
    if skew > SKEW_S:
        return warn(
            f"{skew:.0f} s from this machine's, and it decides when jobs are due", "set both by one time service"
        )
    return ok("it agrees with this machine's")


def persistence(facts: Facts) -> Finding:
    info = facts.redis["info"]
    states = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
    if bad := [name for name in states if info.get(name) == "err"]:
        return fail(f"{', '.join(bad)}: err", f"make logs ARGS=redis ENV={facts.name}; df -h")
    if info["aof_enabled"] != "1":
        return fail("the append-only file is off: a restart loses jobs", f"make deploy-redis ENV={facts.name}")
    return ok("append-only file on; the last writes and saves went well")


def redis_memory(facts: Facts) -> Finding:
    used, most = (int(facts.redis["info"][name]) for name in ("used_memory", "maxmemory"))
    if not most:
        return fail("no maxmemory: the kernel ends Redis at its limit", f"make deploy-redis ENV={facts.name}")
    fact = f"{used // MIB} of {most // MIB} MiB used"
    fix = f"raise REDIS_MAXMEMORY and REDIS_MEMORY_LIMIT in env/{facts.name}.env; make deploy-redis ENV={facts.name}"
    if used >= FULL * most:
        return fail(f"{fact}: it refuses new jobs", fix)
    return ok(fact) if used < FULL_SOON * most else warn(f"{fact}: it will refuse new jobs", fix)


def connections(facts: Facts) -> Finding:
    """Redis lowers its maxclients by itself if the container may open few files only."""
    info = facts.redis["info"]
    now, most = int(info["connected_clients"]), int(info["maxclients"])
    fact = f"{now} of {most}"
    fix = "lower REDIS_MAX_CONNECTIONS or replicas, or raise the limit of open files of the engine's containers"
    return ok(fact) if now < FULL_SOON * most else warn(f"{fact}: it will refuse more", fix)


def redis_configuration(facts: Facts) -> Finding:
    """Compare Redis's settings with its present file and arguments. Only names are given: a value may be secret."""
    wanted, live = redis_settings(facts), facts.redis["config"]
    # What Redis does not list cannot be compared.
    other = [name for name, value in wanted.items() if name in live and canonical(value) != canonical(live[name])]
    if other:
        return warn(f"Redis runs with another {', '.join(sorted(other))}", f"make deploy-redis ENV={facts.name}")
    return ok(f"{len(wanted)} settings are as configured")


def canonical(value: str) -> Any:
    """Return the bytes of an amount of memory, or else the sorted letters: Redis gives flags in an order of its own."""
    size = units.size(value)
    return sorted(value) if size is None else size


def redis_users(facts: Facts) -> Finding | None:
    if not (facts.secrets / ACL).is_file():
        return None
    here, there = hashes((facts.secrets / ACL).read_text()), facts.redis["users"]
    if other := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        return fail(f"Redis has other passwords of {', '.join(other)}", f"make restart ENV={facts.name}")
    return ok("Redis has the passwords of the files")


def served(facts: Facts) -> Finding:
    # For a service without configured replicas, `backlog` warns if jobs wait.
    there = [need.service for need in capacity.needs(facts.model) if is_worker(need.service) and need.replicas]
    wanted = services.served(facts.environment, there).split(",")
    counts = {
        each["queue"]: sum(replica["alive"] for replica in each["replicas"])
        for each in facts.queues
        if each["queue"] in wanted
    }
    if idle := [name for name, count in counts.items() if not count]:
        waiting = sum(each["due"] for each in facts.queues if each["queue"] in idle)
        return fail(f"no replica serves {', '.join(idle)}; {waiting} jobs wait", f"make logs ENV={facts.name}")
    return ok(", ".join(f"{name} by {count}" for name, count in counts.items()))


def backlog(facts: Facts) -> Finding:
    if paused := [each["queue"] for each in facts.queues if each["paused"]]:
        return warn(f"paused: {', '.join(paused)}", f"{app(facts)} queue resume {paused[0]}")
    late = [each for each in facts.queues if (each["oldest_due_s"] or 0) > WAITS_LONG_S]
    if late:
        fact = ", ".join(f"{each['queue']} {each['due']} jobs, {each['oldest_due_s']:.0f} s" for each in late)
        return warn(f"waiting long: {fact}", f"make scale N=… ENV={facts.name}")
    return ok(", ".join(f"{each['queue']} {each['due']} due" for each in facts.queues))


def dead_letters(facts: Facts) -> Finding:
    if dead := [f"{each['queue']} {each['dead']}" for each in facts.queues if each["dead"]]:
        return warn(", ".join(dead), f"{app(facts)} dead ls")
    return ok("none")


def slots(facts: Facts) -> Finding:
    """Each job of a process may need a connection."""
    most = int(facts.environment.values["REDIS_MAX_CONNECTIONS"])
    jobs = {
        each["queue"]: replica["max_jobs"] for each in facts.queues for replica in each["replicas"] if replica["alive"]
    }
    if over := [f"{name} {count}" for name, count in jobs.items() if count > most]:
        fix = f"REDIS_MAX_CONNECTIONS={max(jobs.values())} in env/{facts.name}.env"
        return warn(f"more jobs at a time than REDIS_MAX_CONNECTIONS={most}: {', '.join(over)}", fix)
    return ok(f"{', '.join(f'{name} {count}' for name, count in jobs.items())}; {most} connections")


def app(facts: Facts) -> str:
    return f"python3 -m ops --env {facts.name} app"


CHECKS = (
    redis, redis_clock, persistence, redis_memory, connections, redis_configuration, redis_users, served, backlog,
    dead_letters, slots,
)  # fmt: skip
