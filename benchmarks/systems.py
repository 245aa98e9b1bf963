"""What is measured: each system, its settings, and how its results are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.environments import LOCKS, locked_version
from ops.config import ROOT

QUEUE = "arq:queue:bench"
ARQ_LOCK = ROOT / "requirements" / "app.txt"


@dataclass(frozen=True)
class Count:
    """A command, cheap at any size, that counts the results; or, where they fall, the jobs that have none yet."""

    command: tuple[str, ...]
    falls: bool = False
    database: int = 0


@dataclass(frozen=True)
class System:
    title: str
    peer: str  #: a module of ``benchmarks.peers``
    lock: str | None  #: what its environment is made from; None for the project's own
    slots: int
    count: Count
    jobs: int  #: to drain, for some seconds
    longest_pause_s: float = 0.1  #: before a pick-up; those that poll are asked at any time between two looks
    pick_ups: int = 400
    results: str | None = None  #: keys of results, where it is not they that are counted
    one_at_a_time: bool = False


POLLS: dict[str, Any] = {"longest_pause_s": 0.5, "pick_ups": 100}


def _arq(title: str, peer: str, slots: int, jobs: int, **options: Any) -> System:
    # A job leaves the queue in the transaction that stores its result.
    waiting = Count(("ZCARD", QUEUE), falls=True)
    return System(title, peer, None, slots, waiting, jobs, results="arq:result:*", **options)


def _peer(name: str, **options: Any) -> System:
    peer = name.lower()
    version = locked_version(LOCKS / f"{peer}.txt", peer)
    return System(f"{name} {version}", peer, peer, **options)


OURS = _arq("this worker, 500 slots", "aegis", 500, 30_000)
ARQ = f"arq {locked_version(ARQ_LOCK, 'arq')}"
BEST_ARQ = _arq(f"{ARQ}, 500 slots, uvloop", "arq", 500, 10_000, **POLLS)
RESULTS_ALONE = Count(("DBSIZE",), database=1)

SYSTEMS = (
    OURS,
    _arq("this worker, 10 slots", "aegis", 10, 30_000),
    _arq("this worker, stock producer", "aegis_stock", 500, 30_000),
    BEST_ARQ,
    _arq(f"{ARQ}, as it comes", "arq_default", 10, 1_000, **POLLS),
    _peer("taskiq", slots=100, count=RESULTS_ALONE, jobs=15_000),
    _peer("huey", slots=4, count=Count(("HLEN", "huey.results.bench")), jobs=15_000),
    _peer("dramatiq", slots=8, count=RESULTS_ALONE, jobs=10_000, **POLLS),
    _peer(
        "SAQ",
        slots=10,
        count=Count(("ZCARD", "saq:bench:incomplete"), falls=True),
        jobs=10_000,
        results="saq:job:bench:*",
    ),
    _peer("streaQ", slots=100, count=Count(("ZCARD", "streaq:bench:index:results")), jobs=8_000),
    _peer("Celery", slots=10, count=RESULTS_ALONE, jobs=8_000),
    _peer(
        "RQ",
        slots=1,
        count=Count(("ZCARD", "rq:finished:bench")),
        jobs=5_000,
        results="rq:results:*",
        one_at_a_time=True,
    ),
)
