"""A stack's life: built, up, restarted, scaled, down, destroyed."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from . import capacity, commands, credentials, data, images, journal, releases
from .configuration import ROOT, ConfigurationError
from .stack import Container, Stack, is_worker, say

LOG_LINES = 15  #: of a container that does not become healthy


def up(stack: Stack, _: argparse.Namespace) -> int:
    must_be_whole(stack)
    credentials.ensure(stack)
    base_images(stack)
    # What `make deploy` brought in stays until it brings in another: the checkout may have moved on.
    build = not releases.is_deployed(stack)
    if not build and not releases.are_here(stack):
        raise ConfigurationError(
            f"{stack.version} is deployed, and its image is gone: `make deploy VERSION={stack.version} "
            f"ENV={stack.name}` brings it in again"
        )
    if workers := [service for service in stack.running() if is_worker(service)]:
        _check(stack, workers, build=build)
        build = False
    if code := wait(stack, commands.up(stack.environment, build=build)):
        return code
    record(stack, "up", version=stack.version)
    return stack.run(commands.compose(stack.environment, "ps"))


def wait(stack: Stack, argv: Sequence[str]) -> int:
    """Run a command that waits until all is healthy, and say what there is to see where it is not; return its code."""
    if code := stack.run(argv):
        for each in stack.containers():
            if not each.runs or each.restarts or each.health == "unhealthy":
                print_last_words(stack, each)
        say(f"not all of it became healthy: `make logs ENV={stack.name}` and `make doctor ENV={stack.name}` show why")
    return code


def print_last_words(stack: Stack, container: Container) -> None:
    """Print the end of a container's log to the caller's standard error."""
    log = stack.ask(["docker", "logs", "--tail", str(LOG_LINES), container.id])
    print(log.stdout + log.stderr, end="", file=sys.stderr)


def must_be_whole(stack: Stack) -> None:
    """Raise ``ConfigurationError`` where Redis's data may be half way between two places, and would be found empty.

    A restore that was cut short before that is over, and is told of.
    """
    if cut_short := journal.unfinished(stack.name):
        if cut_short["event"] == "restore":
            data.end_others(stack)
            if not data.is_exchanged(stack):
                reason = "it was cut short before it had replaced anything"
                record(stack, "restore", file=cut_short["file"], outcome="failed", reason=reason)
                say(f"of the last restore nothing is left: {reason}")
                return
            what = f"restore FILE={shlex.quote(cut_short['file'])} YES=1"
        else:
            what = f"upgrade-redis IMAGE={cut_short['image']}"
        again = f"make {what} ENV={stack.name}"
        raise ConfigurationError(
            f"the data of Redis was being replaced, and that was cut short: finish it by `{again}`"
        )


def _check(stack: Stack, workers: Sequence[str], *, build: bool) -> None:
    """Raise ``ConfigurationError`` where those that would take the place of workers that run do not even start."""
    if build and stack.run(commands.compose(stack.environment, "build")):
        raise ConfigurationError("the images could not be built: nothing was changed")
    for service in workers:
        if stack.run(commands.check_worker(stack.environment, service), quiet=True):
            raise ConfigurationError(f"{service} would not start: what runs goes on, and nothing was changed")


def build(stack: Stack, _: argparse.Namespace) -> int:
    if releases.is_deployed(stack):
        raise ConfigurationError(
            f"{stack.version} is deployed, and a build would take its name: `make deploy ENV={stack.name}` builds the "
            "checkout as a version of its own"
        )
    base_images(stack)
    return stack.run(commands.compose(stack.environment, "build"))


def down(stack: Stack, _: argparse.Namespace) -> int:
    """Workers first, since they store the ends of what they run while they drain."""
    code = stack.run(commands.compose(stack.environment, "--profile", "*", "down", "--remove-orphans"))
    if not code:
        record(stack, "down")
    return code


def destroy(stack: Stack, options: argparse.Namespace) -> int:
    """Remove all that the engine has of the environment, its data too, once its name was typed.

    It goes by the project's label, so that half a stack is found as well, and what earlier layers left behind.
    """
    there = {kind: stack.output(commands.list_all(kind, stack.project)).split() for kind in commands.KINDS}
    if not any(there.values()):
        say(f"there is nothing of ENV={stack.name} to remove")
        return 0
    say(_inventory(stack, there))
    if not stack.dry_run:
        _confirm(stack.name, options.confirm)
    if there["container"]:
        # With their grace: what jobs do elsewhere is not ours to cut short.
        stack.run(commands.compose(stack.environment, "--profile", "*", "down", "--volumes", "--remove-orphans"))
    codes = []
    for kind in commands.KINDS:
        if left := stack.output(commands.list_all(kind, stack.project)).split():
            codes.append(stack.run(commands.remove_all(kind, left), quiet=True))
    if any(codes):
        say(f"not all of it could be removed: `make destroy ENV={stack.name}` goes on")
        return 1
    record(stack, "destroy")
    return 0


def _inventory(stack: Stack, there: Mapping[str, Sequence[str]]) -> str:
    """Say what there is, for a person who is about to delete it."""
    # The engine refuses to measure for two at a time.
    measured = stack.ask(["docker", "system", "df", "--verbose", "--format", "{{json .Volumes}}"])
    volumes = [] if measured.returncode else json.loads(measured.stdout)
    sizes = {volume["Name"]: volume["Size"] for volume in volumes}
    lines = [f"ENV={stack.name}, project {stack.project}: {len(there['container'])} containers, all data:"]
    lines += [f"  volume {name}, {sizes.get(name, 'of unknown size')}" for name in there["volume"]]
    if "redis" in stack.running():
        keyspace = stack.ask(commands.redis_cli(stack.environment, ["info", "keyspace"], terminal=False)).stdout
        lines.append(f"  {sum(map(int, re.findall(r'keys=([0-9]+)', keyspace)))} keys in Redis")
    secrets = stack.environment.secrets.relative_to(ROOT)
    return "\n".join([*lines, f"images, backups, {secrets}/, env/ and the journal stay"])


def _confirm(name: str, given: str | None) -> None:
    """Raise ``ConfigurationError`` unless a person, or CONFIRM, has named the environment."""
    if given is None and sys.stdin.isatty():
        print(f"To delete it, type the environment's name, {name}: ", end="", file=sys.stderr, flush=True)
        given = sys.stdin.readline().strip()
    if given != name:
        said = f"CONFIRM={given}" if given else f"nobody said so (CONFIRM={name} does)"
        raise ConfigurationError(f"ENV={name}: nothing was deleted, {said}")


def restart(stack: Stack, options: argparse.Namespace) -> int:
    must_be_whole(stack)
    if not stack.containers():
        raise ConfigurationError(f"the stack is down: `make up ENV={stack.name}` starts it")
    credentials.make(stack, options)
    code = stack.run(commands.compose(stack.environment, "restart")) or wait(stack, commands.wait(stack.environment))
    if not code:
        record(stack, "restart")
    return code


def scale(stack: Stack, options: argparse.Namespace) -> int:
    service, variable = commands.replicas_variable(options.queue)
    if not re.fullmatch("[0-9]{1,4}", options.replicas):
        raise ConfigurationError(f"N={options.replicas}: a number of replicas is 0 to 9999, as in `make scale N=3`")
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
