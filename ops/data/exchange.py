"""One set of Redis's data takes the place of another: what is kept of it, and what is done if that was interrupted."""

import shlex
import time

from ..config import ROOT, OpsError
from ..engine import journal
from ..engine.stack import Stack
from ..engine.terminal import say
from . import archive, backup, volume


def keep(stack: Stack, what: str) -> None:
    """Write what a Redis that was stopped has left into an archive, if there is anything.

    Data that cannot be loaded is kept as well. The archive has no counts then, and people can only look into it.
    """
    at = time.time()
    try:
        counts = volume.count_current(stack)
    except OpsError as error:
        say(f"what was there cannot be loaded, and is kept as it is: {error}")
        counts = None
    if counts == {}:
        return
    file = archive.path(stack, at, "replaced-")
    backup.write(stack, file, {**backup.manifest(stack, at, counts), "redis": {"image": stack.value("REDIS_IMAGE")}})
    stack.tell(f"{what} is kept as {file.relative_to(ROOT)}")


def give_back(stack: Stack) -> None:
    """Give a Redis that was stopped the data that it had before."""
    volume.run(stack, "exchange_back", "clear")


def must_be_whole(stack: Stack) -> None:
    """Raise ``OpsError`` if Redis's data was being replaced, and would be found empty.

    A restore that was interrupted before it had replaced anything is over, and that is said.
    """
    unfinished = journal.unfinished(stack.name)
    if not unfinished:
        return
    if unfinished["event"] == "restore":
        volume.end_others(stack)
        if not volume.is_exchanged(stack):
            reason = "it was interrupted before it had replaced anything"
            stack.record("restore", file=unfinished["file"], outcome=journal.FAILED, reason=reason)
            say(f"the last restore has changed nothing: {reason}")
            return
        what = f"restore FILE={shlex.quote(unfinished['file'])} YES=1"
    else:
        what = f"upgrade-redis IMAGE={unfinished['image']}"
    raise OpsError(f"the replacement of the data of Redis was interrupted: `make {what} ENV={stack.name}` finishes it")
