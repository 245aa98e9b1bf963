"""What was done to an environment on this machine: a line for each change, in ``.local/<ENV>.journal``."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import ROOT
from .lock import user

BEGUN, DONE, FAILED = "begun", "done", "failed"  #: outcomes; an entry without one is of something that was done
_REPLACING = ("restore", "upgrade-redis", "destroy")  #: changes that replace the data of Redis


def path(environment: str) -> Path:
    return ROOT / ".local" / f"{environment}.journal"


def write(environment: str, event: str, **facts: Any) -> None:
    """Add a change: when, by whom, and the facts about it, which are JSON data."""
    line = json.dumps({"at": time.time(), "by": user(), "event": event, **facts})
    file = path(environment)
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as journal:
        journal.write(line + "\n")


def read(environment: str) -> Iterator[dict[str, Any]]:
    """Give the changes in their order. A line that a crash has cut, or that is no entry, is left out."""
    if not path(environment).exists():
        return
    for line in path(environment).read_text().splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.keys() >= {"at", "by", "event"}:
                yield entry


def is_done(entry: dict[str, Any]) -> bool:
    return bool(entry.get("outcome", DONE) == DONE)


def unfinished(environment: str, event: str | None = None) -> dict[str, Any] | None:
    """Return the last change of Redis's data if it was interrupted; with ``event``, only a change of that kind."""
    *_, last = [{}, *(entry for entry in read(environment) if entry["event"] in _REPLACING)]
    return last if last.get("outcome") == BEGUN and event in (None, last["event"]) else None
