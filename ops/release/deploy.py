"""Another version of the workers, without a pause; and another Redis, with a short one.

A deployment starts new replicas beside the old ones, waits until all are healthy, and only then the old ones drain.
Meanwhile both serve the queues, and a job that one does not know goes back for the other. Whatever cuts a deployment
short, the replicas that are left work, and the next deployment replaces all of them.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from functools import partial

from ..config import ROOT, OpsError
from ..data.exchange import must_be_whole
from ..engine import capacity, commands, images, lock, services
from ..engine.change import change
from ..engine.stack import Container, Stack, is_worker
from ..engine.terminal import say
from ..secrets import credentials
from . import versions

HOOKS = ROOT / "ops" / "hooks"  #: `pre-deploy` and `post-deploy`: a team's own programs
POLL_S = 0.3
_REGISTRY = re.compile(r"[^/]*[.:][^/]*/|localhost/")  #: an image's name that begins with a registry's


def deploy(stack: Stack, options: argparse.Namespace) -> int:
    version = versions.check(options.version or versions.next_version(stack))
    return _replace(stack.with_variables(APP_VERSION=version), "deploy", _pull_or_build if options.version else _build)


def rollback(stack: Stack, options: argparse.Namespace) -> int:
    version = options.version or versions.before(versions.past(stack.name), stack.version)
    if version is None:
        raise OpsError(f"nothing was deployed before {stack.version}: `make releases ENV={stack.name}`")
    return _replace(stack.with_variables(APP_VERSION=versions.check(version)), "rollback", _keep_or_pull)


def deploy_redis(stack: Stack, _: argparse.Namespace) -> int:
    """Start Redis again with its present image and configuration. All data is on disk before it stops."""
    credentials.ensure(stack)
    images.ensure_base(stack)
    services.running_redis(stack)
    if stack.run(commands.redis_cli(stack.environment, ["SAVE"], terminal=False)):
        raise OpsError(f"Redis could not save, so it runs on: `make logs ARGS=redis ENV={stack.name}`")
    began = time.monotonic()
    services.recreate_redis(stack)
    seconds = round(time.monotonic() - began, 1)
    stack.tell(f"Redis runs with what is configured now; jobs waited {seconds} s")
    stack.record("deploy-redis", seconds=seconds)
    return 0


def unlock(stack: Stack, _: argparse.Namespace) -> int:
    """Break the lock of a change that hangs. Its process goes on, so end that process first."""
    holder = stack.change("break the lock", partial(lock.break_, stack.name))
    broken = f"ENV={stack.name}: the lock of {holder} was broken"
    say(broken if holder else f"ENV={stack.name} is not being changed")
    return 0


def _replace(stack: Stack, event: str, obtain: Callable[[Stack], None]) -> int:
    must_be_whole(stack)
    began, version, previous = time.monotonic(), stack.version, stack.environment.values["APP_VERSION"]
    hook = partial(_hook, stack, EVENT=event, VERSION=version, PREVIOUS_VERSION=previous)
    if code := hook("pre-deploy"):
        raise OpsError(f"ops/hooks/pre-deploy ended with {code}: nothing was changed")
    credentials.ensure(stack)
    images.ensure_base(stack)
    obtain(stack)
    if "redis" in stack.running():
        old = [worker for worker in _workers(stack) if worker.runs]
        replace, undo, undone = partial(_roll, stack, old), partial(_stop_new, stack, old), f"{previous} runs on"
    else:
        replace, undo, undone = partial(_start, stack), partial(_stop_all, stack), "the stack is down, as it was"
    try:
        with change(
            stack,
            event,
            undo=undo,
            undone=undone,
            interrupted=f"interrupted: all replicas that run go on; `make {event} VERSION={version} ENV={stack.name}` "
            f"finishes it, `make deploy VERSION={previous} ENV={stack.name}` undoes it",
            version=version,
        ):
            replace()
    except OpsError as error:
        hook("post-deploy", OUTCOME="failed")
        say(f"{version} is not deployed: {error}")
        return 1
    versions.prune(stack)
    code = hook("post-deploy", OUTCOME="done")
    stack.tell(f"{version} is deployed ({time.monotonic() - began:.0f} s)")
    return code


# -- the image ----------------------------------------------------------------------------------------------------


def _build(stack: Stack) -> None:
    say(f"building {stack.version}")
    if stack.run(commands.compose(stack.environment, "build", "--quiet")):
        raise OpsError(f"{stack.version} cannot be built: nothing was changed")


def _pull(stack: Stack) -> None:
    images = versions.images(stack)
    say(f"pulling {', '.join(images)}")
    for image in images:
        if stack.run(["docker", "pull", "--quiet", image]):
            raise OpsError(
                f"{image} is neither here nor to be pulled: `make releases ENV={stack.name}` lists what is here"
            )


def _keep_or_pull(stack: Stack) -> None:
    if not versions.are_here(stack):
        _pull(stack)


def _pull_or_build(stack: Stack) -> None:
    if versions.are_here(stack) and not versions.is_to_be_replaced(stack):
        say(f"{stack.version} is here already")
    elif _REGISTRY.match(stack.environment.values["APP_IMAGE"]):
        _pull(stack)
    else:
        _build(stack)


# -- the replicas -------------------------------------------------------------------------------------------------


def _start(stack: Stack) -> None:
    """Start a stack that is down."""
    if services.run_until_healthy(stack, commands.up(stack.environment, build=False)):
        raise OpsError("not all of it became healthy")
    stack.write("APP_VERSION", stack.version)


def _stop_all(stack: Stack) -> None:
    stack.run(commands.compose(stack.environment, "down", "--remove-orphans"), quiet=True)


def _roll(stack: Stack, old: list[Container]) -> None:
    """Start new replicas beside the old ones, and have the old ones drain when the new ones are healthy."""
    _remove(stack, [worker for worker in _workers(stack) if not worker.runs])
    wanted = {need.service: need.replicas for need in capacity.needs(stack.model()) if is_worker(need.service)}
    say(f"starting {sum(wanted.values())} new replicas beside {len(old)} old ones")
    both = {name: number + sum(each.service == name for each in old) for name, number in wanted.items()}
    if stack.run(commands.scale(stack.environment, both, wait=False)):
        raise OpsError("Compose could not start it")
    stack.change("wait until the new replicas are healthy", lambda: _wait_until_healthy(stack, _new(stack, old)))
    # A deployment that was killed may have sent replicas a signal to stop. Compose replaces each when it ends.
    new = _new(stack, old)
    spare = [each for name, number in wanted.items() for each in [n for n in new if n.service == name][number:]]
    stack.write("APP_VERSION", stack.version)  # from here on `make up` and `make scale` start this version
    if old:
        say(f"draining the old replicas, {stack.value('WORKER_STOP_GRACE_SECONDS')} s at most")
    _drain(stack, old + spare)


def _stop_new(stack: Stack, old: list[Container]) -> None:
    say("stopping the new replicas: what they run is finished, or given back")
    _drain(stack, _new(stack, old))


def _workers(stack: Stack) -> list[Container]:
    return [container for container in stack.containers() if is_worker(container.service)]


def _new(stack: Stack, old: list[Container]) -> list[Container]:
    """Return the workers' containers that are not among the old ones."""
    ids = {each.id for each in old}
    return [container for container in _workers(stack) if container.id not in ids]


def _wait_until_healthy(stack: Stack, new: list[Container]) -> None:
    """Raise ``OpsError`` when one ends or is unhealthy. The end of its log goes to the caller's standard error."""
    ids, deadline = {each.id for each in new}, time.monotonic() + commands.HEALTHY_WITHIN_S
    while True:
        now = [container for container in stack.containers() if container.id in ids]
        late = time.monotonic() > deadline
        for each in now:
            if not each.runs or each.restarts or each.health == "unhealthy" or (late and each.health != "healthy"):
                services.print_end_of_log(stack, each)
                what = f"is {each.health}" if each.runs and not each.restarts else "exits right after its start"
                raise OpsError(f"{each.name} {what}")
        if len(now) == len(ids) and all(each.health == "healthy" for each in now):
            return
        if len(now) < len(ids):
            raise OpsError("somebody removed a new replica")
        time.sleep(POLL_S)


def _drain(stack: Stack, containers: list[Container]) -> None:
    """Stop containers, which finish their jobs or give them back, and remove them."""
    if containers:
        stack.run(commands.stop([each.id for each in containers], stack.value("WORKER_STOP_GRACE_SECONDS")), quiet=True)
        _remove(stack, containers)


def _remove(stack: Stack, containers: list[Container]) -> None:
    if containers:
        stack.run(commands.remove([each.id for each in containers]), quiet=True)


def _hook(stack: Stack, name: str, **facts: str) -> int:
    """Run a team's own program, if there is one, with the facts in its environment."""
    program = HOOKS / name
    if not os.access(program, os.X_OK):
        return 0
    return stack.with_variables(ENV=stack.name, **facts).run([str(program)])
