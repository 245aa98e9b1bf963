"""The memory that is configured, and the memory of the machine. Too few CPUs only make everything slower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import OpsError
from ..config.units import gib
from .stack import Stack


@dataclass(frozen=True)
class Need:
    """How much memory, in bytes, the replicas of one service may take together."""

    service: str
    replicas: int
    memory: int


def needs(model: Mapping[str, Any]) -> list[Need]:
    """Return what each service of a merged configuration needs."""
    found = []
    for name, service in model["services"].items():
        replicas = int(service.get("deploy", {}).get("replicas", 1))
        found.append(Need(name, replicas, replicas * int(limits(service).get("memory", 0))))
    return found


def limits(service: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return which limits a service of a merged configuration has, of ``cpus``, ``memory`` and ``pids``."""
    found: Mapping[str, Any] = service.get("deploy", {}).get("resources", {}).get("limits", {})
    return found


def check(stack: Stack) -> None:
    """Raise ``OpsError`` if the limits of all replicas together are more than the machine has."""
    there = int(stack.output(["docker", "info", "--format", "{{.MemTotal}}"]))
    needed = needs(stack.model())
    if sum(need.memory for need in needed) > there:
        raise OpsError(f"{compared(needed, there)}: lower them in env/{stack.name}.env, or FORCE=1")


def compared(needed: Sequence[Need], there: int) -> str:
    """Say what the machine has, and what the limits add up to."""
    parts = ", ".join(f"{need.replicas} × {need.service} {gib(need.memory)}" for need in needed)
    total = gib(sum(need.memory for need in needed))
    return f"this machine has {gib(there)} of memory, and the limits add up to {total} ({parts})"
