"""A stack's life: it is built, brought up, restarted, scaled, brought down, destroyed."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence

from ..config import ROOT, OpsError
from ..data.exchange import must_be_whole
from ..engine import capacity, commands, images, services
from ..engine.stack import Stack, is_worker
from ..engine.terminal import say
from ..secrets import credentials
from . import versions


def up(stack: Stack, _: argparse.Namespace) -> int:
    must_be_whole(stack)
    credentials.ensure(stack)
    images.ensure_base(stack)
    # What `make deploy` brought in stays until the next deployment, as the checkout may have moved on.
    build = not versions.is_deployed(stack)
    if not build and not versions.are_here(stack):
        raise OpsError(
            f"{stack.version} is deployed, and its image is gone: `make deploy VERSION={stack.version} "
            f"ENV={stack.name}` brings it in again"
        )
    if workers := [service for service in stack.running() if is_worker(service)]:
        _check(stack, workers, build=build)
        build = False
    if code := services.run_until_healthy(stack, commands.up(stack.environment, build=build)):
        return code
    stack.record("up", version=stack.version)
    return stack.run(commands.compose(stack.environment, "ps"))


def _check(stack: Stack, workers: Sequence[str], *, build: bool) -> None:
    """Raise ``OpsError`` if the workers that would replace those that run do not even start."""
    if build and stack.run(commands.compose(stack.environment, "build")):
        raise OpsError("the images could not be built: nothing was changed")
    for service in workers:
        if stack.run(commands.check_worker(stack.environment, service), quiet=True):
            raise OpsError(f"{service} would not start: what runs goes on, and nothing was changed")


def build(stack: Stack, _: argparse.Namespace) -> int:
    if versions.is_deployed(stack):
        raise OpsError(
            f"{stack.version} is deployed, and a build would take its name: `make deploy ENV={stack.name}` builds the "
            "checkout as a version of its own"
        )
    images.ensure_base(stack)
    return stack.run(commands.compose(stack.environment, "build"))


def down(stack: Stack, _: argparse.Namespace) -> int:
    code = stack.run(commands.compose(stack.environment, "--profile", "*", "down", "--remove-orphans"))
    if not code:
        stack.record("down")
    return code


def restart(stack: Stack, options: argparse.Namespace) -> int:
    must_be_whole(stack)
    if not stack.containers():
        raise OpsError(f"the stack is down: `make up ENV={stack.name}` starts it")
    credentials.make(stack, options)
    code = stack.run(commands.compose(stack.environment, "restart"))
    code = code or services.run_until_healthy(stack, commands.wait(stack.environment))
    if not code:
        stack.record("restart")
    return code


def scale(stack: Stack, options: argparse.Namespace) -> int:
    service, variable = commands.replicas_variable(options.queue)
    if not re.fullmatch("[0-9]{1,4}", options.replicas):
        raise OpsError(f"N={options.replicas}: a number of replicas is 0 to 9999, as in `make scale N=3`")
    check_service(stack, service)
    if not options.force:
        capacity.check(stack.with_variables(**{variable: options.replicas}))
    return set_replicas(stack, options.queue, int(options.replicas))


def check_service(stack: Stack, service: str) -> None:
    """Raise ``OpsError`` if the stack has no service of that name."""
    services = stack.services()
    if service not in services:
        there = ", ".join(sorted(filter(is_worker, services)))
        hint = "" if service == "worker" else " (a queue has one with compose/queues.yml in COMPOSE_FILE)"
        raise OpsError(f"there is no service {service} in ENV={stack.name}, but: {there}{hint}")


def set_replicas(stack: Stack, queue: str | None, replicas: int) -> int:
    """Write a number of replicas down, and bring the service to it. Replicas that run and other services stay."""
    service, variable = commands.replicas_variable(queue)
    stack.write(variable, str(replicas))
    stack.tell(f"{variable}={replicas} is written to {stack.environment.local_file.relative_to(ROOT)}")
    if not stack.containers():
        say(f"the stack is down: `make up ENV={stack.name}` starts so many replicas")
        return 0
    code = stack.run(commands.scale(stack.environment, {service: replicas}))
    if not code:
        stack.record("scale", service=service, replicas=replicas)
    return code


def destroy(stack: Stack, options: argparse.Namespace) -> int:
    """Remove all that the engine has of the environment, its data too, after its name was typed.

    Things are found by the project's label, so half a stack is found as well, and what earlier layers have left.
    """
    there = {kind: stack.output(commands.list_all(kind, stack.project)).split() for kind in commands.KINDS}
    if not any(there.values()):
        say(f"there is nothing of ENV={stack.name} to remove")
        return 0
    say(_inventory(stack, there))
    stack.change("ask for the environment's name", lambda: _confirm(stack.name, options.confirm))
    if there["container"]:
        # Containers get their grace period, since their jobs may change things elsewhere.
        stack.run(commands.compose(stack.environment, "--profile", "*", "down", "--volumes", "--remove-orphans"))
    codes = []
    for kind in commands.KINDS:
        if left := stack.output(commands.list_all(kind, stack.project)).split():
            codes.append(stack.run(commands.remove_all(kind, left), quiet=True))
    if any(codes):
        say(f"not all of it could be removed: `make destroy ENV={stack.name}` goes on")
        return 1
    stack.record("destroy")
    return 0


def _inventory(stack: Stack, there: Mapping[str, Sequence[str]]) -> str:
    """Say what there is, for a person who is about to delete it."""
    # The engine refuses to measure for two at the same time.
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
    """Raise ``OpsError`` unless a person, or CONFIRM, names the environment."""
    if given is None and sys.stdin.isatty():
        print(f"To delete it, type the environment's name, {name}: ", end="", file=sys.stderr, flush=True)
        given = sys.stdin.readline().strip()
    if given != name:
        answer = f"CONFIRM={given}" if given else f"nobody said so (CONFIRM={name} does)"
        raise OpsError(f"ENV={name}: nothing was deleted, {answer}")
