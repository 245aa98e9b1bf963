"""A backup brought back, to the environment that it is of or to another.

It is made ready and counted beside the data that Redis has, which runs on meanwhile. Only then does Redis stop, what it
has is kept as an archive, too, and the two change places. The journal says what was begun, so that the same command
finishes what was cut short.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from . import archive, backup, commands, counts, credentials, data, images, journal, lifecycle
from .configuration import ROOT, ConfigurationError
from .counts import Counts
from .stack import Stack, is_worker, say

#: What expires has as long left as when it was saved, and this for the restore itself: what was due to expire first
#: would be gone before it can be counted.
GRACE_MS = 10 * 60 * 1000

Replicas = Mapping[str, int]  #: of the services that run


def restore(stack: Stack, options: argparse.Namespace) -> int:
    file = Path(options.file).resolve()
    if not file.is_file():
        raise ConfigurationError(f"FILE={options.file}: there is no such file; `ls backups` shows what there is")
    cut_short = journal.unfinished(stack.name, "restore")
    running = cut_short["running"] if cut_short else running_replicas(stack)
    if running:
        running = {"redis": 1, **running}  # also where it had ended
    if running and not options.yes:
        raise ConfigurationError(f"ENV={stack.name} is up: YES=1 stops it and replaces what is in Redis")
    manifest = archive.check(stack, file, options.identity)
    _must_suit(stack, manifest)
    credentials.ensure(stack)
    lifecycle.base_images(stack)
    data.end_others(stack)
    expected = _make_ready(stack, file, options.identity, manifest)

    lifecycle.record(stack, "restore", file=str(file), running=running, outcome=journal.BEGUN)
    try:
        healthy = _replace(stack, expected, running)
    except ConfigurationError as error:
        if data.is_exchanged(stack):
            stop(stack, ["redis"])
            data.run(stack, "exchange_back", "clear")
        start(stack, running)
        lifecycle.record(stack, "restore", file=file.name, outcome="failed", reason=str(error))
        raise ConfigurationError(f"{error}; ENV={stack.name} has what it had before") from None
    except KeyboardInterrupt:
        say("cut short: the same command again finishes it")
        raise
    data.run(stack, "clear")
    lifecycle.record(stack, "restore", file=file.name, outcome="done")
    if not stack.dry_run:
        state = f"is up{'' if healthy else ', but for workers'}" if running else f"is down: `make up ENV={stack.name}`"
        say(f"{file.name} is restored: {counts.said(expected)}; ENV={stack.name} {state}")
    return 0 if healthy else 1


def running_replicas(stack: Stack) -> dict[str, int]:
    """Return the services of Redis and workers that run, with their numbers."""
    found: dict[str, int] = {}
    for container in stack.containers():
        if container.runs and (container.service == "redis" or is_worker(container.service)):
            found[container.service] = found.get(container.service, 0) + 1
    return found


def stop(stack: Stack, services: list[str]) -> None:
    if services and stack.run(commands.compose(stack.environment, "stop", *services)):
        raise ConfigurationError(f"{', '.join(services)} could not be stopped")


def start(stack: Stack, replicas: Replicas) -> bool:
    """Have services run as they did, Redis first, which ends where it is not among them; return whether workers do."""
    if "redis" not in replicas:
        stack.run(commands.compose(stack.environment, "rm", "--stop", "--force", "redis"), quiet=True)
    elif stack.run(commands.recreate(stack.environment, "redis")):
        raise ConfigurationError(f"Redis did not become healthy: `make logs ARGS=redis ENV={stack.name}` shows why")
    workers = {service: number for service, number in replicas.items() if service != "redis"}
    if workers and stack.run(commands.scale(stack.environment, workers)):
        say(f"not all workers became healthy: `make logs ENV={stack.name}` shows why")
        return False
    return True


def keep(stack: Stack) -> Path | None:
    """Write what a Redis that was stopped has left into an archive, and return its path, None where there is nothing.

    Also where it cannot be loaded: then there are no counts, and it can only be looked into by hand.
    """
    at = time.time()
    found: Counts | None
    try:
        found = data.count_current(stack)
        if not found and not stack.dry_run:
            return None
    except ConfigurationError as error:
        say(f"what was there cannot be loaded, and is kept as it is: {error}")
        found = None
    file = archive.path(stack, at, "replaced-")
    facts = {**backup.manifest(stack, at, found), "redis": {"image": stack.environment.values["REDIS_IMAGE"]}}
    return backup.write(stack, file, facts)


def _must_suit(stack: Stack, manifest: Mapping[str, object]) -> None:
    """Raise ``ConfigurationError`` where workers would refuse the jobs of a backup, or nothing could be proved."""
    if manifest["counts"] is None:
        raise ConfigurationError("its data could not be loaded when it was kept, so it cannot be restored")
    theirs, ours = dict(manifest["payloads"]), backup.payloads(stack)  # type: ignore[call-overload]
    if theirs["serializer"] != ours["serializer"]:
        raise ConfigurationError(
            f"WORKER_SERIALIZER={ours['serializer']} in ENV={stack.name}, and the jobs of the backup are "
            f"{theirs['serializer']}: set it in env/{stack.name}.env"
        )
    if not set(theirs["signing_keys"]) <= set(ours["signing_keys"]) or (
        not theirs["signing_keys"] and ours["signing_keys"]
    ):
        raise ConfigurationError(
            f"secrets/{stack.name}/worker_signing_key has not the keys that the jobs of the backup are signed with: "
            f"copy them from secrets/{manifest['environment']}/, each a line"
        )


def _make_ready(stack: Stack, file: Path, identity: str, manifest: Mapping[str, object]) -> Counts:
    """Have what is in the archive ready to take its place, proved by its counts; return them as they are here."""
    theirs, ours = str(manifest["database"]), stack.environment.values["REDIS_DB"]
    swap = (theirs, ours) if theirs != ours else None
    delay_ms = data.now_ms() - int(str(manifest["snapshot_ms"])) + GRACE_MS
    expected = counts.swapped(manifest["counts"], theirs, ours)  # type: ignore[arg-type]
    stack.change(f"unpack {file.name} beside the data of Redis", partial(_unpack, stack, file, identity))
    try:
        found = data.make_ready(stack, swap=swap, delay_ms=delay_ms)
    except ConfigurationError:
        image = str(manifest["redis"]["image"])  # type: ignore[index]
        say(f"{stack.environment.values['REDIS_IMAGE']} cannot load what {image} has saved: converting it")
        images.ensure(image, say=say)
        data.make_ready(stack.given(REDIS_IMAGE=image), portable=True)
        found = data.make_ready(stack, "take_ready", swap=swap, delay_ms=delay_ms)
    if not stack.dry_run:
        data.must_match(expected, found, file.name)
    return expected


def _unpack(stack: Stack, file: Path, identity: str) -> None:
    with data.unpacking(stack) as into:
        archive.unpack(stack, file, identity, into)


def _replace(stack: Stack, expected: Counts, running: Replicas) -> bool:
    stop(stack, [service for service in running if service != "redis"])
    stop(stack, ["redis"] if "redis" in running else [])
    if (kept := keep(stack)) and not stack.dry_run:
        say(f"what is replaced is kept as {kept.relative_to(ROOT)}")
    data.run(stack, "exchange")
    start(stack, {"redis": 1})
    if not stack.dry_run:
        # Those who enqueue may have gone on by now.
        data.must_match(expected, data.live_counts(stack), "what Redis has loaded", more=True)
    return start(stack, running)
