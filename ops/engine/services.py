"""The services of a stack: which run, how they start and stop, which programs can be run in their containers."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..config import OpsError
from ..config.environment import Environment
from . import commands
from .stack import Container, Stack, is_worker
from .terminal import say

LOG_LINES = 15  #: of a container that does not become healthy

Replicas = Mapping[str, int]  #: by service


def run_until_healthy(stack: Stack, argv: Sequence[str]) -> int:
    """Run a command that waits until all is healthy, and return its exit code. Otherwise, say what there is to see."""
    if code := stack.run(argv):
        for each in stack.containers():
            if not each.runs or each.restarts or each.health == "unhealthy":
                print_end_of_log(stack, each)
        say(f"not all of it became healthy: `make logs ENV={stack.name}` and `make doctor ENV={stack.name}` show why")
    return code


def print_end_of_log(stack: Stack, container: Container) -> None:
    """Print the end of a container's log to the caller's standard error."""
    log = stack.ask(["docker", "logs", "--tail", str(LOG_LINES), container.id])
    print(log.stdout + log.stderr, end="", file=sys.stderr)


def running_redis(stack: Stack) -> Container:
    """Return the container of Redis. Raises ``OpsError`` if it does not run."""
    for container in stack.containers():
        if container.service == "redis" and container.runs:
            return container
    raise OpsError(f"Redis does not run in ENV={stack.name}: `make up ENV={stack.name}`")


def running_replicas(stack: Stack) -> dict[str, int]:
    """Return how many containers of Redis, and of each service of workers, run."""
    running = (each.service for each in stack.containers() if each.runs)
    return dict(Counter(service for service in running if service == "redis" or is_worker(service)))


def stop(stack: Stack, services: Sequence[str]) -> None:
    if services and stack.run(commands.compose(stack.environment, "stop", *services)):
        raise OpsError(f"{', '.join(services)} could not be stopped")


def start(stack: Stack, replicas: Replicas) -> bool:
    """Start Redis, then workers, with these numbers of replicas. Return whether the workers became healthy.

    Redis is removed if it is not among the services.
    """
    if "redis" in replicas:
        recreate_redis(stack)
    else:
        stack.run(commands.compose(stack.environment, "rm", "--stop", "--force", "redis"), quiet=True)
    workers = {service: number for service, number in replicas.items() if service != "redis"}
    if workers and stack.run(commands.scale(stack.environment, workers)):
        say(f"not all workers became healthy: `make logs ENV={stack.name}` shows why")
        return False
    return True


def recreate_redis(stack: Stack) -> None:
    """Start Redis again, with its present configuration. Raises ``OpsError`` if it does not become healthy."""
    if stack.run(commands.recreate(stack.environment, "redis")):
        raise OpsError(f"Redis did not become healthy: `make logs ARGS=redis ENV={stack.name}` shows why")


# -- programs in the containers ------------------------------------------------------------------------------------


def app(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(app_command(stack, options.arguments, terminal=sys.stdin.isatty()))


def app_command(stack: Stack, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """Return the command that runs ``aegis-worker`` in a worker that is up, for all queues of the stack."""
    workers = [name for name in stack.services() if is_worker(name)]
    running = [name for name in stack.running() if name in workers]
    if not running:
        variables = (f"{name.upper().replace('-', '_')}_REPLICAS" for name in workers)
        start = "up" if any(stack.environment.values.get(each) != "0" for each in variables) else "scale N=1"
        raise OpsError(f"no worker is up in ENV={stack.name}: `make {start} ENV={stack.name}`")
    return commands.app(stack.environment, running[0], served(stack.environment, workers), arguments, terminal=terminal)


def served(environment: Environment, workers: Iterable[str]) -> str:
    """Return the queues that services of workers serve together, with commas."""
    own = [name.removeprefix("worker-").replace("-", "_") for name in workers if name != "worker"]
    return ",".join(own) or environment.values["WORKER_QUEUES"]


def redis_cli(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(commands.redis_cli(stack.environment, options.arguments, terminal=sys.stdin.isatty()))


def compose(stack: Stack, options: argparse.Namespace) -> int:
    return stack.run(commands.compose(stack.environment, *options.arguments))
