"""Redis on another image: another version, up or down, or another server.

The old server writes its data as commands, which the new one reads, whatever its version; both count it. That is
rehearsed on a backup while all goes on. Then Redis stops for as long as it takes to do the same with what it has by
then, while workers wait for it.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

from . import backup, data, images, journal, lifecycle, restore
from .configuration import ROOT, ConfigurationError
from .stack import Stack, say

EVENT = "upgrade-redis"


def upgrade(stack: Stack, options: argparse.Namespace) -> int:
    if not options.image:
        raise ConfigurationError("IMAGE=: name the image that Redis is to run on, as in IMAGE=valkey/valkey:8-alpine")
    new = stack.given(REDIS_IMAGE=options.image)
    stack.change(f"have the image {options.image}", partial(images.ensure, options.image, say=say))
    if cut_short := journal.unfinished(stack.name, EVENT):
        _recover(stack.given(REDIS_IMAGE=cut_short["previous"]), stack.given(REDIS_IMAGE=cut_short["image"]))
    image = backup.running_image(stack)
    if image == options.image:
        stack.write("REDIS_IMAGE", image)
        say(f"Redis runs on {image}")
        return 0
    old = stack.given(REDIS_IMAGE=image)
    archive, _ = backup.make(stack)
    _make_ready(old, new, "clear", "take_snapshot")

    lifecycle.record(stack, EVENT, image=options.image, previous=image, outcome=journal.BEGUN)
    began = time.monotonic()
    try:
        _replace(old, new)
    except ConfigurationError as error:
        _go_back(old, new)
        lifecycle.record(stack, EVENT, image=options.image, outcome="failed", reason=str(error))
        raise ConfigurationError(f"{error}; Redis runs on {image} again, with what it had") from None
    except KeyboardInterrupt:
        say("cut short: the same command again finishes it")
        raise
    waited = round(time.monotonic() - began, 1)
    data.run(new, "clear")
    lifecycle.record(stack, EVENT, image=options.image, previous=image, outcome="done", seconds=waited)
    if not stack.dry_run:
        say(f"Redis runs on {options.image}; jobs waited {waited} s")
        say(f"back: `make upgrade-redis IMAGE={image} ENV={stack.name}`; as it was: {archive.relative_to(ROOT)}")
    return 0


def _make_ready(old: Stack, new: Stack, *take: str) -> None:
    """Have what steps take ready for the new image. Raises ``ConfigurationError`` where the counts differ."""
    before = data.make_ready(old, *take, portable=True)
    after = data.make_ready(new, "take_ready")
    if not new.dry_run:
        data.must_match(before, after, f"what {new.variables['REDIS_IMAGE']} has loaded")


def _replace(old: Stack, new: Stack) -> None:
    restore.stop(old, ["redis"])
    _make_ready(old, new, "take_current")
    # From here on `make up` starts the new image, on the old data or the new.
    new.write("REDIS_IMAGE", new.variables["REDIS_IMAGE"])
    data.run(new, "exchange")
    restore.start(new, {"redis": 1})


def _go_back(old: Stack, new: Stack) -> None:
    if data.is_exchanged(old):
        restore.stop(new, ["redis"])
        if kept := restore.keep(new):  # it may have taken jobs
            say(f"what the new one had is kept as {kept.relative_to(ROOT)}")
        data.run(old, "exchange_back", "clear")
    old.write("REDIS_IMAGE", old.variables["REDIS_IMAGE"])
    restore.start(old, {"redis": 1})


def _recover(old: Stack, new: Stack) -> None:
    """Have Redis run again after an upgrade that was cut short: on the new image where it has the new data."""
    data.end_others(old)
    now = new if data.is_exchanged(old) else old
    image = now.variables["REDIS_IMAGE"]
    say(f"the last upgrade was cut short: starting Redis on {image}")
    now.write("REDIS_IMAGE", image)
    try:
        restore.start(now, {"redis": 1})
    except ConfigurationError:
        _go_back(old, new)
        raise
    lifecycle.record(now, EVENT, image=image, outcome="recovered")
