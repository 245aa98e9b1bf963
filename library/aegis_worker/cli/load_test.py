"""``my-app load-test``: send jobs with a known cost, and measure how they run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import ceil
from time import monotonic
from typing import Annotated, Any
from uuid import uuid4

import typer
from arq.connections import ArqRedis
from arq.jobs import JobResult, deserialize_result
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aegis_worker import NewJob, enqueue_many
from aegis_worker.cli.errors import Failure, known, project, run
from aegis_worker.cli.output import Json, show, table
from aegis_worker.cli.queue import full_name
from aegis_worker.queue import keys

app = typer.Typer(add_completion=False)

QUEUE = "load_test"
SEND_BATCH = 100
READ_BATCH = 500
READ_EVERY_S = 0.05


class Kind(StrEnum):
    io = "io"
    cpu = "cpu"
    memory = "memory"
    failure = "failure"


TASKS = {
    Kind.io: "light_io_task",
    Kind.cpu: "light_cpu_task",
    Kind.memory: "light_memory_task",
    Kind.failure: "failure_task",
}


@dataclass(slots=True)
class Seen:
    """What a test has seen so far. An interrupted test reports it, too."""

    sent: list[str] = field(default_factory=list)
    results: list[JobResult] = field(default_factory=list)


@app.command("load-test")
def load_test(
    kind: Annotated[
        Kind, typer.Argument(metavar="KIND", help=f"What the jobs do: {', '.join(Kind)}.", show_default=False)
    ],
    n: Annotated[int, typer.Option("-n", "--jobs", metavar="N", min=1, help="How many jobs.")] = 100,
    rate: Annotated[
        float | None, typer.Option(metavar="R", min=0.01, help="Jobs to send in a second; default: all at once.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the results and measure.")] = True,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds to wait after the last job was sent.")
    ] = 300,
    json: Json = False,
) -> None:
    """Send load to the queue `load_test` and measure waits, run times and throughput.

    Times come from the clocks of workers and producer. They are only as exact as these clocks agree. The report has
    no wait of a job that was tried more than once, because only its last start is known.

    Exit code 0: done.
    Exit code 1: a job failed that should not, or the timeout passed.
    Exit code 2: Redis cannot be reached, or the queue keeps no results.
    Exit code 130: Ctrl-C. The report shows what was seen so far.
    """
    known([QUEUE])
    if wait and not vars(project().load(QUEUE))["keep_result"]:
        raise Failure(f"{QUEUE} keeps no results to measure: set WORKER_LOAD_TEST_KEEP_RESULT, or use --no-wait")
    seen, interrupted = Seen(), False
    try:
        _run(kind, seen, n, rate, timeout if wait else None)
    except KeyboardInterrupt:
        interrupted = True
    if wait:
        report = measure(kind, seen)
        show(report, json, *_tables(report))
    else:
        show({"kind": kind, "jobs": len(seen.sent)}, json, f"{len(seen.sent):,} jobs sent")
    if interrupted:
        raise typer.Exit(130)
    if wait and report["missing"]:
        raise Failure(f"{report['missing']:,} of {n:,} jobs had not ended {timeout:g} s after the last was sent", 1)
    if wait and report["failed"] and kind is not Kind.failure:
        first = next(result.result for result in seen.results if not result.success)
        raise Failure(f"{report['failed']:,} of {n:,} jobs failed, the first with {first!r}", 1)


def _run(kind: Kind, seen: Seen, n: int, rate: float | None, timeout_s: float | None) -> None:
    """Send the jobs, and wait for their results unless ``timeout_s`` is None. ``seen`` collects both."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        sent = progress.add_task("sent", total=n)
        done = progress.add_task("done", total=n, visible=timeout_s is not None)

        async def test(pool: ArqRedis) -> None:
            await _send(pool, TASKS[kind], n, rate, seen.sent, lambda count: progress.advance(sent, count))
            if timeout_s is not None:
                await _collect(pool, seen, timeout_s, lambda count: progress.advance(done, count))

        run(test)


async def _send(
    pool: ArqRedis, task: str, n: int, rate: float | None, sent: list[str], advance: Callable[[int], object]
) -> None:
    """Enqueue ``n`` jobs: at even intervals if there is a rate, else at once."""
    start = monotonic()
    while len(sent) < n:
        due = n if rate is None else min(n, 1 + int((monotonic() - start) * rate))
        if rate and due == len(sent):
            await asyncio.sleep(start + due / rate - monotonic())
            continue
        ids = [uuid4().hex for _ in range(min(SEND_BATCH, due - len(sent)))]
        await enqueue_many(pool, [NewJob(task, job_id=job_id) for job_id in ids], queue_name=full_name(QUEUE))
        sent += ids
        advance(len(ids))


async def _collect(pool: ArqRedis, seen: Seen, timeout_s: float, advance: Callable[[int], object]) -> None:
    """Read the results until all are there, or until the time has passed."""
    missing, deadline = set(seen.sent), monotonic() + timeout_s
    while missing:
        began = monotonic()
        ids = list(missing)
        for first in range(0, len(ids), READ_BATCH):
            batch = ids[first : first + READ_BATCH]
            found = [data for data in await pool.mget([keys.RESULT + job_id for job_id in batch]) if data]
            results = [deserialize_result(data, deserializer=pool.job_deserializer) for data in found]
            seen.results += results
            missing -= {result.job_id or "" for result in results}
            advance(len(results))
        if monotonic() >= deadline:
            break
        # Reading takes at most a fifth of the time, so that it does not become a part of the load.
        await asyncio.sleep(max(READ_EVERY_S, 4 * (monotonic() - began)) if missing else 0)


def measure(kind: Kind, seen: Seen) -> dict[str, Any]:
    """Return the report of a test."""
    results = seen.results
    took = _ms(min(r.enqueue_time for r in results), max(r.finish_time for r in results)) if results else 0
    return {
        "kind": kind,
        "jobs": len(seen.sent),
        "done": len(results),
        "missing": len(seen.sent) - len(results),
        "failed": sum(not r.success for r in results),
        "retries": sum(r.job_try - 1 for r in results),
        "jobs_per_s": round(len(results) / took * 1000, 1) if took else None,
        "wait_ms": _spread(_ms(r.enqueue_time, r.start_time) for r in results if r.job_try == 1),
        "run_ms": _spread(_ms(r.start_time, r.finish_time) for r in results),
        "total_ms": _spread(_ms(r.enqueue_time, r.finish_time) for r in results),
        "replicas": dict(Counter(_replica(r) for r in results).most_common()),
    }


def _ms(start: datetime, end: datetime) -> int:
    return round((end - start).total_seconds() * 1000)


def _replica(result: JobResult) -> str:
    return str(result.result.get("replica", "unknown")) if isinstance(result.result, dict) else "unknown"


def _spread(values: Iterable[int]) -> dict[str, int] | None:
    """Return percentiles, by nearest rank."""
    ranked = sorted(values)
    if not ranked:
        return None
    return {f"p{p}": ranked[ceil(len(ranked) * p / 100) - 1] for p in (50, 95, 99)} | {"max": ranked[-1]}


def _tables(report: dict[str, Any]) -> tuple[Any, ...]:
    names = {"wait_ms": "in the queue", "run_ms": "run", "total_ms": "enqueue to finish"}
    spreads = [
        (name, *((report[key] or {}).get(p) for p in ("p50", "p95", "p99", "max"))) for key, name in names.items()
    ]
    counts = [report[key] for key in ("jobs", "done", "failed", "retries", "jobs_per_s")]
    shares = [(name, count, f"{count / report['done']:.0%}") for name, count in report["replicas"].items()]
    return (
        table((">jobs", ">done", ">failed", ">retries", ">jobs/s"), [counts]),
        table(("ms", ">p50", ">p95", ">p99", ">max"), spreads),
        table(("replica", ">jobs", ">share"), shares),
    )
