"""A stack's life: built, up, restarted, scaled, down."""

from __future__ import annotations

import argparse
from functools import partial

from . import capacity, commands, credentials, images, journal, releases
from .configuration import ROOT, ConfigurationError
from .stack import Stack, is_worker, say


def up(stack: Stack, _: argparse.Namespace) -> int:
    credentials.ensure(stack)
    base_images(stack)
    # What `make deploy` brought in stays until it brings in another: the checkout may have moved on.
    code = stack.run(commands.up(stack.environment, build=not releases.is_deployed(stack)))
    if code:
        say(f"not all of it became healthy: `make logs ENV={stack.name}` shows why")
        return code
    record(stack, "up", version=stack.version)
    return stack.run(commands.compose(stack.environment, "ps"))


def build(stack: Stack, _: argparse.Namespace) -> int:
    base_images(stack)
    return stack.run(commands.compose(stack.environment, "build"))


def down(stack: Stack, _: argparse.Namespace) -> int:
    """Workers first, since they store the ends of what they run while they drain."""
    code = stack.run(commands.compose(stack.environment, "--profile", "*", "down", "--remove-orphans"))
    if not code:
        record(stack, "down")
    return code


def restart(stack: Stack, _: argparse.Namespace) -> int:
    code = stack.run(commands.compose(stack.environment, "restart"))
    if not code:
        record(stack, "restart")
    return code


def scale(stack: Stack, options: argparse.Namespace) -> int:
    service, variable = commands.replicas_variable(options.queue)
    if not options.replicas.isdigit():
        raise ConfigurationError(f"N={options.replicas}: a number of replicas is 0 or more, as in `make scale N=3`")
    check_service(stack, service)
    if not options.force:
        capacity.check(stack.given(**{variable: options.replicas}))
    return set_replicas(stack, options.queue, int(options.replicas))


def check_service(stack: Stack, service: str) -> None:
    """Raise ``ConfigurationError`` where the stack has no service of that name."""
    services = stack.services()
    if service not in services:
        there = ", ".join(sorted(filter(is_worker, services)))
        hint = "" if service == "worker" else " (a queue has one with compose/queues.yml in COMPOSE_FILE)"
        raise ConfigurationError(f"there is no service {service} in ENV={stack.name}, but: {there}{hint}")


def set_replicas(stack: Stack, queue: str | None, replicas: int) -> int:
    """Write a number of replicas down, for good, and bring the service to it; others, and those that run, stay."""
    service, variable = commands.replicas_variable(queue)
    stack.write(variable, str(replicas))
    if not stack.dry_run:
        say(f"{variable}={replicas} is written to {stack.environment.local_file.relative_to(ROOT)}")
    if not stack.containers():
        say(f"the stack is down: `make up ENV={stack.name}` starts as many")
        return 0
    code = stack.run(commands.scale(stack.environment, {service: replicas}))
    if not code:
        record(stack, "scale", service=service, replicas=replicas)
    return code


def base_images(stack: Stack) -> None:
    """Have the images that ours are built on, or stand-ins for them."""
    for variable in ("PYTHON_IMAGE", "REDIS_IMAGE"):
        image = stack.environment.values[variable]
        stack.change(f"have the image {image}", partial(images.ensure, image, say=say))


def record(stack: Stack, event: str, **facts: object) -> None:
    """Enter what was done in the environment's journal."""
    if not stack.dry_run:
        journal.write(stack.name, event, **facts)
