"""``my-app queue``: what waits in the queues; to empty, pause and resume one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from arq.jobs import DeserializationError, deserialize_job
from arq.utils import timestamp_ms

from app.cli.errors import known, run
from app.cli.output import Json, age, show, table
from app.cli.task import decoded, load, settings_of, tasks_of
from app.components.worker import queues
from app.components.worker.runtime import health, keys
from app.components.worker.runtime.execution import LATEST_MS
from app.components.worker.runtime.scripts import tries_over

app = typer.Typer(name="queue", help="Queues: look, empty, pause.", no_args_is_help=True, add_completion=False)

LOOKED_AT = 1000  #: jobs that stock workers run are counted among this many at the head of a queue
SHOWN = 20
PURGE_BATCH = 500

Name = Annotated[str, typer.Argument(metavar="NAME", help="The queue's name, `system` say.", show_default=False)]


def full_name(queue: str) -> str:
    """``media`` → ``arq:queue:media``."""
    return keys.QUEUE_PREFIX + queue


def time_of(score: float) -> int:
    """Return a score as ms since the epoch; producers write any, that of a time which Python does not know too."""
    return int(max(0, min(score, LATEST_MS)))


async def look(pool: ArqRedis, queue: str) -> dict[str, Any]:
    """Return how a queue stands. Running jobs are members of the queue too; here each job is counted once."""
    name, now = full_name(queue), timestamp_ms()
    async with pool.pipeline(transaction=True) as pipe:
        pipe.zcard(name)
        pipe.zcount(name, "-inf", now)
        pipe.zrangebyscore(name, "-inf", now, 0, LOOKED_AT, withscores=True)
        pipe.zcard(keys.leases(name))
        pipe.zcount(keys.leases(name), "-inf", now)
        pipe.zcard(keys.dead(name))
        pipe.exists(keys.paused(name))
        depth, past, head, leased, lapsed, dead, paused = await pipe.execute()
    # Jobs with a lease stand behind those that are due; a stock worker leaves them where they are.
    marks = await pool.mget([keys.IN_PROGRESS.encode() + raw_id for raw_id, _ in head]) if head else []
    waiting = [time_of(due) for (_, due), mark in zip(head, marks, strict=True) if mark is None]
    in_stock_workers = len(head) - len(waiting)
    return {
        "queue": queue,
        "depth": depth,
        "due": past - in_stock_workers + lapsed,
        "deferred": max(0, depth - past - leased),
        "running": in_stock_workers + leased - lapsed,
        "oldest_due_s": (now - waiting[0]) / 1000 if waiting else None,
        "dead": dead,
        "paused": bool(paused),
    }


async def live_replicas(pool: ArqRedis, queue: str) -> int:
    """Return how many replicas serve a queue."""
    return sum(replica["alive"] for replica in await health.read(pool, full_name(queue)))


@app.command()
def ls(json: Json = False) -> None:
    """List all queues: jobs that are due, deferred (retries that wait too) and running, and who serves them.

    Exit code 0: done.
    Exit code 2: Redis is out of reach.
    """
    _, missing = load(queues.names())

    async def read(pool: ArqRedis) -> list[dict[str, Any]]:
        return [
            {
                **await look(pool, queue),
                "live_replicas": await live_replicas(pool, queue),
                "not_loaded": missing.get(queue),
            }
            for queue in queues.names()
        ]

    data = run(read)
    rows = [
        (
            q["queue"],
            q["depth"],
            q["due"],
            q["deferred"],
            q["running"],
            q["dead"],
            age(q["oldest_due_s"]),
            "yes" if q["paused"] else "no",
            q["live_replicas"],
        )
        for q in data
    ]
    columns = ("queue", ">depth", ">due", ">deferred", ">running", ">dead", ">oldest due", "paused", ">replicas")
    notes = [f"{queue} cannot be loaded here: {reason}" for queue, reason in missing.items()]
    show(data, json, table(columns, rows), *notes)


@app.command("show")
def show_queue(name: Name, json: Json = False) -> None:
    """Show a queue's settings and the jobs that come next.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    known([name])
    loaded, missing = load([name])
    data: dict[str, Any] = {"queue": name, "not_loaded": missing.get(name)}
    if settings_class := loaded.get(name):
        data |= settings_of(settings_class) | {"functions": list(tasks_of(settings_class))}
    data["jobs"] = run(lambda pool: _next_jobs(pool, full_name(name)))
    jobs = [(j["id"], j["function"], age(j["due_in_s"]), j["tries"], j["state"]) for j in data["jobs"]]
    show(
        data,
        json,
        "\n".join(f"{key:<12} {_listed(value)}" for key, value in data.items() if key != "jobs" and value is not None),
        table(("next jobs", "function", ">due in", ">tries", "state"), jobs),
    )


async def _next_jobs(pool: ArqRedis, queue_name: str) -> list[dict[str, Any]]:
    head = await pool.zrange(queue_name, 0, SHOWN - 1, withscores=True)
    if not head:
        return []
    now = timestamp_ms()
    prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY)
    async with pool.pipeline(transaction=True) as pipe:
        for prefix in prefixes:
            pipe.mget([prefix.encode() + raw_id for raw_id, _ in head])
        pipe.zmscore(keys.leases(queue_name), [raw_id for raw_id, _ in head])
        payloads, marks, tries, leases = await pipe.execute()
    return [
        {
            "id": keys.job_id(raw_id),
            "function": _function(pool, payload),
            "due_in_s": None if mark else (time_of(due) - now) / 1000,  # a running one's score says something else
            "tries": tries_over(over) + (lapses is not None),
            "state": "running" if mark else "deferred" if due > now else "due",
        }
        for (raw_id, due), payload, mark, over, lapses in zip(head, payloads, marks, tries, leases, strict=True)
    ]


def _function(pool: ArqRedis, payload: bytes | None) -> str | None:
    if payload is None:
        return None
    try:
        return decoded(deserialize_job, payload, pool).function
    except DeserializationError:
        return None


def _listed(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value


@app.command()
def purge(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    json: Json = False,
) -> None:
    """Remove the jobs that wait in a queue, deferred ones too; those that run go on.

    Exit code 0: done.
    Exit code 1: not confirmed.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    known([name])
    depth = run(lambda pool: pool.zcard(full_name(name)))
    if depth and not yes:
        typer.confirm(f"Remove the waiting ones of {depth:,} jobs in {name}?", abort=True, err=True)

    async def remove(pool: ArqRedis) -> int:
        script = pool.register_script(Path(__file__).with_name("purge.lua").read_bytes())
        total = 0
        # No more than there were: a producer that is faster than we are must not keep us here.
        while batch := min(PURGE_BATCH, depth - total):
            removed = await script(
                keys=[full_name(name), keys.ABORT], args=[batch, keys.IN_PROGRESS, keys.JOB, keys.RETRY, keys.RAISED]
            )
            total += removed
            if removed < batch:
                break
        return total

    removed = run(remove)
    show({"queue": name, "removed": removed}, json, f"{removed:,} jobs removed from {name}")


@app.command()
def pause(name: Name, json: Json = False) -> None:
    """Have workers start nothing more from a queue; what runs goes on.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    known([name])
    run(lambda pool: pool.set(keys.paused(full_name(name)), 1))
    show({"queue": name, "paused": True}, json, f"{name} is paused: `queue resume {name}` ends it")


@app.command()
def resume(name: Name, json: Json = False) -> None:
    """Have workers start jobs from a paused queue again.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    known([name])
    run(lambda pool: pool.delete(keys.paused(full_name(name))))
    show({"queue": name, "paused": False}, json, f"{name} is served")
