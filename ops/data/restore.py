"""A backup is brought back, to its own environment or to another one.

Its data is made ready and counted beside the data that Redis has, while Redis goes on. Only then Redis stops, what it
has is kept as an archive, and the two change places. If that is interrupted, the same command finishes it.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..config import OpsError
from ..engine import images, journal, services
from ..engine.change import change
from ..engine.services import Replicas
from ..engine.stack import Stack
from ..engine.terminal import say
from ..secrets import credentials
from . import archive, backup, counts, exchange, volume
from .counts import Counts

#: A key has as long left as when it was saved, and so much longer: otherwise the first keys would expire during the
#: restore, before they can be counted.
GRACE_MS = 10 * 60 * 1000


def restore(stack: Stack, options: argparse.Namespace) -> int:
    file = Path(options.file).resolve()
    if not file.is_file():
        raise OpsError(f"FILE={options.file}: there is no such file; `ls backups` shows what there is")
    unfinished = journal.unfinished(stack.name, "restore")
    running = unfinished["running"] if unfinished else services.running_replicas(stack)
    if running:
        running = {"redis": 1, **running}  # also if Redis had ended
    if running and not options.yes:
        raise OpsError(f"ENV={stack.name} is up: YES=1 stops it and replaces what is in Redis")
    manifest = archive.check(stack, file, options.identity)
    _must_suit(stack, manifest)
    credentials.ensure(stack)
    images.ensure_base(stack)
    volume.end_others(stack)
    expected = _make_ready(stack, file, options.identity, manifest)
    with change(
        stack,
        "restore",
        begun={"file": str(file), "running": running},
        undo=partial(_undo, stack, running),
        undone=f"ENV={stack.name} has what it had before",
        interrupted="interrupted: the same command again finishes it",
        finish=partial(volume.run, stack, "clear"),
        file=file.name,
    ):
        healthy = _replace(stack, expected, running)
    state = f"is up{'' if healthy else ', but for workers'}" if running else f"is down: `make up ENV={stack.name}`"
    stack.tell(f"{file.name} is restored: {counts.described(expected)}; ENV={stack.name} {state}")
    return 0 if healthy else 1


def _must_suit(stack: Stack, manifest: Mapping[str, object]) -> None:
    """Raise ``OpsError`` if workers would refuse the jobs of a backup, or if there are no counts to prove it by."""
    if manifest["counts"] is None:
        raise OpsError("its data could not be loaded when it was kept, so it cannot be restored")
    theirs, ours = dict(manifest["payloads"]), backup.payloads(stack)  # type: ignore[call-overload]
    if theirs["serializer"] != ours["serializer"]:
        raise OpsError(
            f"WORKER_SERIALIZER={ours['serializer']} in ENV={stack.name}, and the jobs of the backup are "
            f"{theirs['serializer']}: set it in env/{stack.name}.env"
        )
    if not set(theirs["signing_keys"]) <= set(ours["signing_keys"]) or (
        not theirs["signing_keys"] and ours["signing_keys"]
    ):
        raise OpsError(
            f"secrets/{stack.name}/worker_signing_key does not have the keys that the backup's jobs are signed with: "
            f"copy them from secrets/{manifest['environment']}/, each on a line of its own"
        )


def _make_ready(stack: Stack, file: Path, identity: str, manifest: Mapping[str, object]) -> Counts:
    """Make the archive's data ready beside Redis's own, and return its counts. They prove that nothing is missing."""
    theirs, ours = str(manifest["database"]), stack.environment.values["REDIS_DB"]
    swap = (theirs, ours) if theirs != ours else None
    delay_ms = int(time.time() * 1000) - int(str(manifest["snapshot_ms"])) + GRACE_MS
    expected = counts.swapped(manifest["counts"], theirs, ours)  # type: ignore[arg-type]
    stack.change(f"unpack {file.name} beside the data of Redis", partial(_unpack, stack, file, identity))
    try:
        found = volume.make_ready(stack, swap=swap, delay_ms=delay_ms)
    except OpsError:
        image = str(manifest["redis"]["image"])  # type: ignore[index]
        say(f"{stack.environment.values['REDIS_IMAGE']} cannot load what {image} has saved: converting it")
        images.ensure(image)
        volume.make_ready(stack.with_variables(REDIS_IMAGE=image), portable=True)
        found = volume.make_ready(stack, "take_ready", swap=swap, delay_ms=delay_ms)
    volume.must_match(stack, expected, found, file.name)
    return expected


def _unpack(stack: Stack, file: Path, identity: str) -> None:
    with volume.unpacking(stack) as into:
        archive.unpack(stack, file, identity, into)


def _replace(stack: Stack, expected: Counts, running: Replicas) -> bool:
    services.stop(stack, [service for service in running if service != "redis"])
    services.stop(stack, ["redis"] if "redis" in running else [])
    exchange.keep(stack, "what is replaced")
    volume.run(stack, "exchange")
    services.start(stack, {"redis": 1})
    # Producers may have gone on by now, so there may be more.
    volume.must_match(stack, expected, volume.live_counts(stack), "what Redis has loaded", more=True)
    return services.start(stack, running)


def _undo(stack: Stack, running: Replicas) -> None:
    if volume.is_exchanged(stack):
        services.stop(stack, ["redis"])
        exchange.give_back(stack)
    services.start(stack, running)
