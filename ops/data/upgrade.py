"""Redis on another image: another version, up or down, or another server.

The old server writes its data as commands, which the new one reads, whatever its version. Both count it. That is
rehearsed with a backup while all goes on. Then Redis stops for as long as it takes to do the same with its present
data, and workers wait for it.
"""

import argparse
from functools import partial

from ..config import ROOT, OpsError
from ..engine import images, journal, services
from ..engine.change import change
from ..engine.stack import Stack
from ..engine.terminal import say
from . import backup, exchange, volume

EVENT = "upgrade-redis"


def upgrade(stack: Stack, options: argparse.Namespace) -> int:
    if not options.image:
        raise OpsError("IMAGE=: name the image that Redis is to run on, as in IMAGE=valkey/valkey:8-alpine")
    new = stack.with_variables(REDIS_IMAGE=options.image)
    images.ensure_for(stack, options.image)
    if unfinished := journal.unfinished(stack.name, EVENT):
        before, after = (stack.with_variables(REDIS_IMAGE=unfinished[key]) for key in ("previous", "image"))
        _recover(before, after)
    image = backup.running_image(stack)
    if image == options.image:
        stack.write("REDIS_IMAGE", image)
        say(f"Redis runs on {image}")
        return 0
    old = stack.with_variables(REDIS_IMAGE=image)
    archive = backup.make(stack)
    _make_ready(old, new, "clear", "take_snapshot")
    with change(
        stack,
        EVENT,
        begun={},
        undo=partial(_go_back, old, new),
        undone=f"Redis runs on {image} again, with what it had",
        interrupted="interrupted: the same command again finishes it",
        finish=partial(volume.run, new, "clear"),
        image=options.image,
        previous=image,
    ) as seconds:
        _replace(old, new)
        waited = seconds()
    stack.tell(f"Redis runs on {options.image}; jobs waited {waited} s")
    stack.tell(f"back: `make upgrade-redis IMAGE={image} ENV={stack.name}`; as it was: {archive.relative_to(ROOT)}")
    return 0


def _make_ready(old: Stack, new: Stack, *take: str) -> None:
    """Make what the steps take ready for the new image. Raises ``OpsError`` if the counts differ."""
    before = volume.make_ready(old, *take, portable=True)
    after = volume.make_ready(new, "take_ready")
    volume.must_match(new, before, after, f"what {new.value('REDIS_IMAGE')} has loaded")


def _replace(old: Stack, new: Stack) -> None:
    services.stop(old, ["redis"])
    _make_ready(old, new, "take_current")
    # From here on `make up` starts the new image, with the old data or with the new.
    new.write("REDIS_IMAGE", new.value("REDIS_IMAGE"))
    volume.run(new, "exchange")
    services.start(new, {"redis": 1})


def _go_back(old: Stack, new: Stack) -> None:
    if volume.is_exchanged(old):
        services.stop(new, ["redis"])
        exchange.keep(new, "what the new one had")  # it may have taken jobs
        exchange.give_back(old)
    old.write("REDIS_IMAGE", old.value("REDIS_IMAGE"))
    services.start(old, {"redis": 1})


def _recover(old: Stack, new: Stack) -> None:
    """Start Redis after an upgrade that was interrupted: on the new image if it has the new data."""
    volume.end_others(old)
    now = new if volume.is_exchanged(old) else old
    image = now.value("REDIS_IMAGE")
    say(f"the last upgrade was interrupted: starting Redis on {image}")
    now.write("REDIS_IMAGE", image)
    try:
        services.start(now, {"redis": 1})
    except OpsError:
        _go_back(old, new)
        raise
    now.record(EVENT, image=image, outcome="recovered")
