"""The jobs of a scenario, how many there are, and what is to become of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from random import Random
from typing import Any

QUEUE = "arq:queue:faults"
JOBS = int(os.environ.get("FAULTS_JOBS", "600"))  #: a scenario
SECONDS = max(1.2, JOBS / 400)  #: for so long jobs come in and faults happen

HOPELESS_TRIES = 3
KILLER_TRIES = 2


@dataclass
class Job:
    """A job, and what it has to come to where nothing disturbs it."""

    function: str
    args: tuple[Any, ...] = ()
    defer_s: float = 0
    succeeds: bool = True
    tries: int = 1  #: that it needs, all of which run
    wait_s: float = 0  #: that it asks for between two tries
    enqueued: float = 0  #: monotonic time of the first attempt


def mixed(rng: Random, count: int = JOBS) -> dict[str, Job]:
    """Jobs by id: most do nothing or take some ms, some take longer, wait for their time, retry or fail."""
    return {f"job-{n}": _draw(rng) for n in range(count)}


def _draw(rng: Random) -> Job:
    (kind,) = rng.choices(["no-op", "short", "long", "deferred", "flaky", "fails", "hopeless"], [50, 22, 8, 8, 8, 2, 2])
    match kind:
        case "no-op":
            return Job("work", (0,))
        case "short":
            return Job("work", (rng.uniform(0.002, 0.01),))
        case "long":
            return Job("work", (rng.uniform(0.1, 0.4),))
        case "deferred":
            return Job("work", (0,), defer_s=rng.uniform(0.1, 1))
        case "flaky":
            tries, wait_s = rng.choice([2, 3]), rng.choice([0, rng.uniform(0.05, 0.5)])
            return Job("flaky", (tries, wait_s), tries=tries, wait_s=wait_s)
        case "fails":
            return Job("fails", succeeds=False)
    return Job("hopeless", succeeds=False, tries=HOPELESS_TRIES)
