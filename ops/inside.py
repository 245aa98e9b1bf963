"""Other programs, run in the stack's containers or with its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from . import commands
from .configuration import ConfigurationError, Environment
from .stack import Stack, is_worker


def app(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(app_command(stack, options.arguments, terminal=sys.stdin.isatty()))


def app_command(stack: Stack, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """``aegis-worker`` in a worker that is up, for all queues that the stack serves."""
    workers = [name for name in stack.services() if is_worker(name)]
    running = [name for name in stack.running() if name in workers]
    if not running:
        variables = (f"{name.upper().replace('-', '_')}_REPLICAS" for name in workers)
        start = "up" if any(stack.environment.values.get(each) != "0" for each in variables) else "scale N=1"
        raise ConfigurationError(f"no worker is up in ENV={stack.name}: `make {start} ENV={stack.name}`")
    queues = served(stack.environment, workers)
    command = ["aegis-worker", *arguments]
    return commands.run_in(stack.environment, running[0], command, terminal=terminal, WORKER_QUEUES=queues)


def served(environment: Environment, workers: Iterable[str]) -> str:
    """Return the queues that services of workers serve together, by comma."""
    split = [name.removeprefix("worker-").replace("-", "_") for name in workers if name != "worker"]
    return ",".join(split) or environment.values["WORKER_QUEUES"]


def redis_cli(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(commands.redis_cli(stack.environment, options.arguments, terminal=sys.stdin.isatty()))


def compose(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(commands.compose(stack.environment, *options.arguments))
