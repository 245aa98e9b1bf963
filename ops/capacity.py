"""Whether the memory that is configured is there. CPUs are no matter of fitting: too few make everything slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .configuration import ConfigurationError
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
        deploy = service["deploy"]
        replicas = int(deploy.get("replicas", 1))
        found.append(Need(name, replicas, replicas * int(deploy["resources"]["limits"]["memory"])))
    return found


def check(stack: Stack) -> None:
    """Raise ``ConfigurationError`` where the limits of all replicas together are more than the machine has."""
    there = int(stack.output(["docker", "info", "--format", "{{.MemTotal}}"]))
    needed = needs(stack.model())
    if (total := sum(need.memory for need in needed)) > there:
        parts = ", ".join(f"{need.replicas} × {need.service} {_gib(need.memory)}" for need in needed)
        raise ConfigurationError(
            f"this machine has {_gib(there)} of memory, and the limits add up to {_gib(total)} ({parts}): lower them "
            f"in env/{stack.name}.env, or FORCE=1"
        )


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
