"""Checks of the machine: what is installed, the kernel, disk, memory, clock, network."""

import ctypes
import os
import re
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from ...config import ROOT
from ...config.units import GIB, gib
from ...engine import capacity
from .facts import Facts, service_of
from .finding import Finding, fail, ok, warn

ENGINE_LEAST, COMPOSE_LEAST = (20, 10), (2, 24)
DISK_LOW, DISK_TOO_LOW = 5 * GIB, GIB  #: free bytes
TIME_ERROR = 5  #: adjtimex returns this if no time service sets the clock
CONNECTS_WITHIN_S = 2

_RESOLVE = "import socket, sys; socket.getaddrinfo(sys.argv[1], 443)"


def python(_: Facts) -> Finding:
    fact = f"Python {sys.version.split()[0]}"
    return ok(fact) if find_spec("ensurepip") else warn(f"{fact} without venv, for `make test` and more", "make engine")


def engine(facts: Facts) -> Finding:
    version = facts.engine["ServerVersion"]
    fact = f"Docker Engine {version}"
    return ok(fact) if number(version) >= ENGINE_LEAST else fail(f"{fact}: it has to be 20.10 or newer", "make engine")


def compose(facts: Facts) -> Finding:
    version = facts.compose_version
    fact = f"Docker Compose {version.lstrip('v')}"
    return ok(fact) if number(version) >= COMPOSE_LEAST else fail(f"{fact}: it has to be 2.24 or newer", "make engine")


def cgroups(facts: Facts) -> Finding:
    info = facts.engine
    fact = f"version {info.get('CgroupVersion', '1')}"
    boot = "add cgroup_enable=memory swapaccount=1 to the kernel's command line, and boot"
    lacks = [what for key, what in (("MemoryLimit", "memory"), ("CpuCfsQuota", "CPUs")) if not info.get(key)]
    if lacks:
        return fail(f"{fact}: no limits of {' and '.join(lacks)}: one container can take the whole machine", boot)
    if not info.get("PidsLimit"):
        return warn(f"{fact}: no limit of processes", "boot a kernel with CONFIG_CGROUP_PIDS")
    if not info.get("SwapLimit"):
        return warn(f"{fact}: no limit of swap: a container swaps where its memory should end", boot)
    return ok(f"{fact}; limits of memory, swap, CPUs and processes work")


def overcommit(facts: Facts) -> Finding:
    value = facts.kernel("/proc/sys/vm/overcommit_memory")
    fact = f"vm.overcommit_memory={value}"
    fix = "echo vm.overcommit_memory=1 | sudo tee /etc/sysctl.d/60-redis.conf && sudo sysctl --system"
    return ok(fact) if value == "1" else warn(f"{fact}: when memory is short, Redis cannot fork to save", fix)


def huge_pages(facts: Facts) -> Finding:
    text = facts.kernel("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = text.partition("[")[2].partition("]")[0]
    fact = f"transparent huge pages: {chosen}"
    fix = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    return warn(f"{fact}: a save of Redis takes more memory, and stalls", fix) if chosen == "always" else ok(fact)


def swap(facts: Facts) -> Finding:
    total = facts.meminfo["SwapTotal"]
    used = total - facts.meminfo["SwapFree"]
    fact = f"{gib(used)} of {gib(total)} used"
    if used * 2 > total:
        return warn(f"{fact}: the machine is short of memory", "lower limits and replicas, or add memory")
    return ok(fact)


def disk(facts: Facts) -> Finding:
    folders = [ROOT, Path(facts.engine["DockerRootDir"])]
    folder, free = min(
        ((folder, shutil.disk_usage(folder).free) for folder in folders if folder.exists()), key=lambda each: each[1]
    )
    fact = f"{gib(free)} free at {folder}"
    if free < DISK_TOO_LOW:
        return fail(f"{fact}: Redis cannot save", "docker system df; docker builder prune; docker image prune")
    return ok(fact) if free >= DISK_LOW else warn(fact, "docker system df; docker builder prune; docker image prune")


def memory(facts: Facts) -> Finding:
    needed, there = capacity.needs(facts.model), int(facts.engine["MemTotal"])
    fact = capacity.compared(needed, there)
    if sum(need.memory for need in needed) > there:
        return fail(fact, f"lower WORKER_MEMORY_LIMIT or WORKER_REPLICAS in env/{facts.name}.local.env")
    return ok(fact)


def free_memory(facts: Facts) -> Finding:
    """A container that does not run yet has to find its memory. One that runs has most of it already."""
    running = [service_of(each) for each in facts.containers if each["State"]["Running"]]
    wanted = sum(
        need.memory // need.replicas * max(0, need.replicas - running.count(need.service))
        for need in capacity.needs(facts.model)
        if need.replicas
    )
    free, total = facts.meminfo["MemAvailable"], facts.meminfo["MemTotal"]
    fact = f"{gib(free)} of {gib(total)} available"
    if free < wanted:
        fact = f"{fact}; what is to start may take {gib(wanted)}"
    elif free >= total / 20:
        return ok(fact)
    return warn(fact, f"end other programs, or lower limits in env/{facts.name}.local.env")


def cpus(facts: Facts) -> Finding:
    there = int(facts.engine["NCPU"])
    services = facts.model["services"].items()
    limits = {name: float(capacity.limits(each).get("cpus", 0)) for name, each in services}
    if over := [f"{name} {limit:g}" for name, limit in limits.items() if limit > there]:
        fix = f"lower the …_CPU_LIMIT in env/{facts.name}.local.env to {there}"
        return fail(
            f"the machine has {there}, and a container with a higher limit cannot start: {', '.join(over)}", fix
        )
    return ok(f"{there}; limits: {', '.join(f'{name} {limit:g}' for name, limit in limits.items())}")


def clock(_: Facts) -> Finding | None:
    state = kernel_clock()
    if state is None:
        return None
    if state == TIME_ERROR:
        return warn("no time service sets the clock, and it decides when jobs are due", "sudo timedatectl set-ntp true")
    return ok("set by a time service")


def dns(facts: Facts) -> Finding | None:
    """The proxy resolves the names of what is pulled through it."""
    if facts.engine.get("HttpsProxy"):
        return None
    host = registry_host(facts)
    if facts.ask(sys.executable, "-c", _RESOLVE, host).returncode:
        return warn(f"{host} has no address: nothing can be pulled", "check /etc/resolv.conf")
    return ok(f"{host} has an address")


def registry(facts: Facts) -> Finding | None:
    """If a name has no address, ``dns`` has reported it."""
    host = registry_host(facts)
    if facts.engine.get("HttpsProxy"):
        return ok(f"by the proxy {urlsplit(facts.engine['HttpsProxy']).hostname}")
    try:
        socket.create_connection((host, 443), CONNECTS_WITHIN_S).close()
    except socket.gaierror:
        return None
    except OSError as error:
        fix = "allow connections to it; otherwise base images are built from Debian's packages"
        return warn(f"{host} does not answer: {error}", fix)
    return ok(f"{host} answers")


def registry_host(facts: Facts) -> str:
    return str(urlsplit(facts.engine["IndexServerAddress"]).hostname)


def kernel_clock() -> int | None:
    """Return the state of the kernel's clock, or None if the system does not tell."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    # A `struct timex` of zeros changes nothing. It takes less than these 512 bytes.
    return int(adjtimex(ctypes.create_string_buffer(512))) if adjtimex and os.name == "posix" else None


def number(version: str) -> tuple[int, ...]:
    """``v2.40.3-desktop.1`` → ``(2, 40)``."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


CHECKS = (python, engine, compose, cgroups, overcommit, huge_pages, swap, disk, clock, dns, registry)
ROOM = (memory, free_memory, cpus)  #: for what the environment needs
