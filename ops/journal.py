"""What was done to an environment on this machine: a line for each change, in ``.local/<ENV>.journal``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .configuration import ROOT
from .lock import user

BEGUN = "begun"  #: outcome of what has to be finished or undone
REPLACING = ("restore", "upgrade-redis", "destroy")  #: the data of Redis


def path(environment: str) -> Path:
    return ROOT / ".local" / f"{environment}.journal"


def write(environment: str, event: str, **facts: Any) -> None:
    """Add what happened: when, by whom, and what there is to know of it, as JSON data."""
    line = json.dumps({"at": time.time(), "by": user(), "event": event, **facts})
    file = path(environment)
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as journal:
        journal.write(line + "\n")


def read(environment: str) -> Iterator[dict[str, Any]]:
    """Give what happened, in order; a line that was cut short by a crash, or is no entry, is left out."""
    if not path(environment).exists():
        return
    for line in path(environment).read_text().splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.keys() >= {"at", "by", "event"}:
                yield entry


def unfinished(environment: str, event: str | None = None) -> dict[str, Any] | None:
    """Return the entry of a change of Redis's data, of any or of one kind, that was cut short; None where there is
    none, or another has been made since."""
    *_, last = [{}, *(entry for entry in read(environment) if entry["event"] in REPLACING)]
    return last if last.get("outcome") == BEGUN and event in (None, last["event"]) else None
