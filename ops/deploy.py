"""Another version of the workers, without a pause; and another Redis, with a short one.

A deployment brings up new replicas beside the old ones, waits until all are healthy, and only then has the old ones
drain. Meanwhile both serve the queues: what the one does not know, it puts back for the other. Whatever cuts it short
leaves replicas that work; the next deployment takes those that are not what it wants for old.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable

from . import capacity, commands, credentials, lifecycle, lock, releases
from .configuration import ROOT, ConfigurationError
from .stack import Container, Stack, is_worker, say

HOOKS = ROOT / "ops" / "hooks"  #: `pre-deploy` and `post-deploy`: a team's own programs
LOOK_S = 0.3
_REGISTRY = re.compile(r"[^/]*[.:][^/]*/|localhost/")  #: an image's name that begins with a registry's


class _Failed(Exception):
    """The new replicas are not to be had; the message says why."""


def deploy(stack: Stack, options: argparse.Namespace) -> int:
    version = releases.check(options.version or releases.next_version(stack))
    return _replace(stack.given(APP_VERSION=version), "deploy", _pull_or_build if options.version else _build)


def rollback(stack: Stack, options: argparse.Namespace) -> int:
    version = options.version or releases.before(releases.past(stack.name), stack.version)
    if version is None:
        raise ConfigurationError(f"nothing was deployed before {stack.version}: `make releases ENV={stack.name}`")
    return _replace(stack.given(APP_VERSION=releases.check(version)), "rollback", _keep_or_pull)


def deploy_redis(stack: Stack, _: argparse.Namespace) -> int:
    """Start Redis anew with the image and the configuration of now; its data is on disk before it stops."""
    credentials.ensure(stack)
    lifecycle.base_images(stack)
    if "redis" not in stack.running():
        raise ConfigurationError(f"Redis does not run in ENV={stack.name}: `make up ENV={stack.name}`")
    if stack.run(commands.save(stack.environment)):
        raise ConfigurationError(f"Redis could not save, so it runs on: `make logs ARGS=redis ENV={stack.name}`")
    began = time.monotonic()
    if stack.run(commands.recreate(stack.environment, "redis")):
        raise ConfigurationError(f"Redis did not become healthy: `make logs ARGS=redis ENV={stack.name}` shows why")
    if not stack.dry_run:
        say(f"Redis runs with what is configured now; jobs waited {time.monotonic() - began:.1f} s")
    lifecycle.record(stack, "deploy-redis", seconds=round(time.monotonic() - began, 1))
    return 0


def unlock(stack: Stack, _: argparse.Namespace) -> int:
    """Break the lock of a change that hangs. Whoever has it goes on, so end that one first."""
    holder = stack.change("break the lock", lambda: lock.break_(stack.name))
    say(f"ENV={stack.name}: the lock was broken of {holder}" if holder else f"ENV={stack.name} is not being changed")
    return 0


def _replace(stack: Stack, event: str, obtain: Callable[[Stack], None]) -> int:
    lifecycle.must_be_whole(stack)
    began, version, previous = time.monotonic(), stack.version, stack.environment.values["APP_VERSION"]
    hook = {"EVENT": event, "VERSION": version, "PREVIOUS_VERSION": previous}
    if code := _hook(stack, "pre-deploy", **hook):
        raise ConfigurationError(f"ops/hooks/pre-deploy ended with {code}: nothing was changed")
    credentials.ensure(stack)
    lifecycle.base_images(stack)
    obtain(stack)
    runs = "redis" in stack.running()
    try:
        if runs:
            _roll(stack)
        else:
            _start(stack)
    except _Failed as failed:
        lifecycle.record(stack, event, version=version, outcome="failed", reason=str(failed))
        _hook(stack, "post-deploy", OUTCOME="failed", **hook)
        say(f"{version} is not deployed: {failed}; {f'{previous} runs on' if runs else 'the stack is down, as it was'}")
        return 1
    except KeyboardInterrupt:
        say(
            f"cut short: all replicas that run go on; `make {event} VERSION={version} ENV={stack.name}` finishes it, "
            f"`make deploy VERSION={previous} ENV={stack.name}` undoes it"
        )
        raise
    lifecycle.record(stack, event, version=version, outcome="done", seconds=round(time.monotonic() - began, 1))
    releases.prune(stack)
    code = _hook(stack, "post-deploy", OUTCOME="done", **hook)
    if not stack.dry_run:
        say(f"{version} is deployed ({time.monotonic() - began:.0f} s)")
    return code


# -- the image ----------------------------------------------------------------------------------------------------


def _build(stack: Stack) -> None:
    say(f"building {stack.version}")
    if stack.run(commands.compose(stack.environment, "build", "--quiet")):
        raise ConfigurationError(f"{stack.version} cannot be built: nothing was changed")


def _pull(stack: Stack) -> None:
    images = releases.images(stack)
    say(f"pulling {', '.join(images)}")
    for image in images:
        if stack.run(["docker", "pull", "--quiet", image]):
            raise ConfigurationError(
                f"{image} is neither here nor to be pulled: `make releases ENV={stack.name}` lists what is here"
            )


def _keep_or_pull(stack: Stack) -> None:
    if not releases.are_here(stack):
        _pull(stack)


def _pull_or_build(stack: Stack) -> None:
    if releases.are_here(stack) and not releases.is_to_be_mended(stack):
        say(f"{stack.version} is here already")
    elif _REGISTRY.match(stack.environment.values["APP_IMAGE"]):
        _pull(stack)
    else:
        _build(stack)


# -- the replicas -------------------------------------------------------------------------------------------------


def _start(stack: Stack) -> None:
    """Nothing runs that could go on."""
    if lifecycle.wait(stack, commands.up(stack.environment, build=False)):
        stack.run(commands.compose(stack.environment, "down", "--remove-orphans"), quiet=True)
        raise _Failed("not all of it became healthy")
    _write_version(stack)


def _roll(stack: Stack) -> None:
    old = [worker for worker in _workers(stack) if worker.runs]
    _remove(stack, [worker for worker in _workers(stack) if not worker.runs])
    wanted = {need.service: need.replicas for need in capacity.needs(stack.model()) if is_worker(need.service)}
    say(f"starting {sum(wanted.values())} new replicas beside {len(old)} old ones")
    both = {name: number + sum(each.service == name for each in old) for name, number in wanted.items()}
    try:
        if stack.run(commands.scale(stack.environment, both, wait=False)):
            raise _Failed("Compose could not start it")
        if not stack.dry_run:
            _wait_until_healthy(stack, _without(_workers(stack), old))
    except _Failed:
        say("stopping the new replicas: what they run is finished, or given back")
        _drain(stack, _without(_workers(stack), old))
        raise
    _write_version(stack)
    # Of those that a deployment which was killed had told to stop, Compose replaces each that ends only now.
    new = _without(_workers(stack), old)
    spare = [each for name, number in wanted.items() for each in [n for n in new if n.service == name][number:]]
    if old:
        say(f"draining the old replicas, {_grace(stack)} s at most")
    _drain(stack, old + spare)


def _workers(stack: Stack) -> list[Container]:
    return [container for container in stack.containers() if is_worker(container.service)]


def _without(containers: list[Container], others: list[Container]) -> list[Container]:
    ids = {other.id for other in others}
    return [container for container in containers if container.id not in ids]


def _wait_until_healthy(stack: Stack, new: list[Container]) -> None:
    """Raises ``_Failed`` at the first that ends or is unhealthy; its last words go to the caller's standard error."""
    ids, deadline = {each.id for each in new}, time.monotonic() + commands.HEALTHY_WITHIN_S
    while True:
        now = [container for container in stack.containers() if container.id in ids]
        late = time.monotonic() > deadline
        for each in now:
            if not each.runs or each.restarts or each.health == "unhealthy" or (late and each.health != "healthy"):
                lifecycle.print_last_words(stack, each)
                what = f"is {each.health}" if each.runs and not each.restarts else "ends as soon as it starts"
                raise _Failed(f"{each.name} {what}")
        if len(now) == len(ids) and all(each.health == "healthy" for each in now):
            return
        if len(now) < len(ids):
            raise _Failed("somebody removed a new replica")
        time.sleep(LOOK_S)


def _drain(stack: Stack, containers: list[Container]) -> None:
    """Have them finish what they run, or give it back, and remove them."""
    if containers:
        stack.run(commands.stop([each.id for each in containers], _grace(stack)), quiet=True)
        _remove(stack, containers)


def _remove(stack: Stack, containers: list[Container]) -> None:
    if containers:
        stack.run(commands.remove([each.id for each in containers]), quiet=True)


def _grace(stack: Stack) -> int:
    return int(stack.environment.values["WORKER_STOP_GRACE_SECONDS"])


def _write_version(stack: Stack) -> None:
    """From here on `make up` and `make scale` start this version."""
    stack.write("APP_VERSION", stack.version)


def _hook(stack: Stack, name: str, **facts: str) -> int:
    """Run a team's own program, if there is one, with what it may want to know in its environment."""
    program = HOOKS / name
    if not os.access(program, os.X_OK):
        return 0
    return stack.given(ENV=stack.name, **facts).run([str(program)])
