"""Checks of what runs: containers against the configuration, their health, networks, a change that was interrupted."""

import json
import time
from datetime import datetime
from typing import Any

from ...engine import capacity, lock
from .drift import differences
from .facts import Facts, name_of, service_of
from .finding import Finding, fail, ok, warn

LOOP_RESTARTS, LOOP_S = 3, 300  #: a container loops if it has restarted so often, and started within so many seconds
FIXES = {
    "paused": "docker unpause {name}",
    "exited": "docker logs --tail 20 {name}; make up ENV={env}",
    "dead": "docker rm -f {name}; make up ENV={env}",
}
LOOK = "docker logs --tail 20 {name}"


def change(facts: Facts) -> Finding:
    if holder := lock.holder(facts.environment.name):
        return warn(f"under way: {holder}", f"wait for it, or make unlock ENV={facts.name}")
    if left := lock.left(facts.environment.name):
        return warn(f"interrupted: {left}", f"make up ENV={facts.name}")
    return ok("none is under way, none was interrupted")


def replicas(facts: Facts) -> Finding:
    if not facts.containers:
        return warn("the stack is down", f"make up ENV={facts.name}")
    running = [service_of(each) for each in facts.containers if each["State"]["Status"] in ("running", "paused")]
    counts = [(need.service, running.count(need.service), need.replicas) for need in capacity.needs(facts.model)]
    fact = ", ".join(f"{service} {there} of {wanted}" for service, there, wanted in counts)
    if any(there < wanted for _, there, wanted in counts):
        return fail(fact, f"make up ENV={facts.name}")
    return ok(fact) if all(there == wanted for _, there, wanted in counts) else warn(fact, f"make up ENV={facts.name}")


def container_health(facts: Facts) -> Finding:
    ill = [(each, state) for each in facts.started if (state := state_of(each)) != "healthy"]
    if not ill:
        return ok("all are healthy")
    (first, state), *_ = ill
    fix = FIXES.get(state, LOOK).format(name=name_of(first), env=facts.name)
    finding = warn if all(state == "starting" for _, state in ill) else fail
    return finding(", ".join(f"{name_of(each)} is {state}" for each, state in ill), fix)


def state_of(container: dict[str, Any]) -> str:
    """Return Docker's word for a container's state or, if it runs, for its health."""
    state = container["State"]
    if state["Status"] != "running":
        return str(state["Status"])
    return str(state.get("Health", {}).get("Status", "healthy"))


def restarts(facts: Facts) -> Finding:
    many = [each for each in facts.started if each["RestartCount"]]
    fact = ", ".join(f"{name_of(each)} {each['RestartCount']}" for each in many)
    fix = LOOK.format(name=name_of(many[0])) if many else ""
    if any(loops(each, time.time()) for each in many):
        return fail(f"exits right after its start: {fact}", fix)
    return warn(f"restarted: {fact}", fix) if many else ok("none")


def loops(container: dict[str, Any], now: float) -> bool:
    state = container["State"]
    # Docker gives nanoseconds, which Python 3.10 cannot read.
    started = datetime.fromisoformat(state["StartedAt"][:19] + "+00:00").timestamp()
    lately = now - started < LOOP_S
    return state["Status"] == "restarting" or (container["RestartCount"] >= LOOP_RESTARTS and lately)


def out_of_memory(facts: Facts) -> Finding:
    if killed := [each for each in facts.started if each["State"]["OOMKilled"]]:
        variable = f"{service_of(killed[0]).upper().replace('-', '_')}_MEMORY_LIMIT"
        names = ", ".join(map(name_of, killed))
        return fail(f"the kernel ended a process in {names} at its limit", f"raise {variable} in env/{facts.name}.env")
    return ok("none reached its limit of memory")


def drift(facts: Facts) -> Finding:
    """Compare containers with their services' present configuration. Only names are given: a value may be secret."""
    drifted: dict[str, dict[str, None]] = {}
    for each in facts.started:
        if service := facts.model["services"].get(name := service_of(each)):
            names = differences(each, name, facts.model, facts.images.get(service.get("image", "")))
            drifted.setdefault(name, {}).update(dict.fromkeys(names))
    if any(drifted.values()):
        fact = "; ".join(f"{name} differs by {listed([*names])}" for name, names in drifted.items() if names)
        return warn(fact, f"make up ENV={facts.name}")
    return ok("what runs is what is configured")


def listed(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def orphans(facts: Facts) -> Finding:
    if left := [name_of(each) for each in facts.started if service_of(each) not in facts.model["services"]]:
        return warn(f"containers of no configured service: {', '.join(left)}", f"docker rm -f {' '.join(left)}")
    return ok("none")


def networks(facts: Facts) -> Finding:
    _ = facts.started
    wanted = {each["name"]: bool(each.get("internal")) for each in facts.model["networks"].values()}
    # Docker names those that are missing on standard error, beside the others.
    there = {
        each["Name"]: each["Internal"] for each in json.loads(facts.ask("docker", "network", "inspect", *wanted).stdout)
    }
    fix = f"make down up ENV={facts.name}"
    if missing := wanted.keys() - there:
        return fail(f"missing: {', '.join(sorted(missing))}", fix)
    if open_ := [name for name, internal in wanted.items() if internal and not there[name]]:
        return fail(f"it has a way out, and must not: {', '.join(open_)}", fix)
    return ok(", ".join(f"{name}{' (internal)' if internal else ''}" for name, internal in there.items()))


CHECKS = (
    change, replicas, container_health, restarts, out_of_memory, drift, orphans, networks
)  # fmt: skip
