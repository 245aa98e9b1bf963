"""``my-app health``: whether the queues are served, and the state of Redis."""

from __future__ import annotations

from time import time
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis

from aegis_worker.cli.errors import known, project, run
from aegis_worker.cli.output import Json, age, show, size, table
from aegis_worker.cli.queue import full_name, live
from aegis_worker.queue import admin

app = typer.Typer(name="health", help="The state of workers and Redis.", no_args_is_help=True, add_completion=False)

Queues = Annotated[
    list[str] | None, typer.Option("--queue", metavar="NAME", help="Only this queue; default: WORKER_QUEUES.")
]


@app.command()
def status(queue: Queues = None, json: Json = False) -> None:
    """Show queues, the replicas that serve them, and Redis.

    Exit code 0: each queue has a live replica.
    Exit code 1: a queue has no live replica.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    names = known(queue or project().served)

    async def read(pool: ArqRedis) -> dict[str, Any]:
        return {
            "redis": await admin.server(pool),
            "queues": [
                await admin.queue_counts(pool, full_name(name))
                | {"replicas": await admin.queue_replicas(pool, full_name(name))}
                for name in names
            ],
        }

    data = run(read)
    redis, queues, now = data["redis"], data["queues"], time()
    idle = [q["queue"] for q in queues if not any(replica["alive"] for replica in q["replicas"])]
    queue_rows = [
        (
            q["queue"],
            q["due"],
            q["deferred"],
            q["running"],
            q["dead"],
            age(q["oldest_due_s"]),
            "no live replica" if q["queue"] in idle else "paused" if q["paused"] else "served",
        )
        for q in queues
    ]
    replica_rows = [
        (
            q["queue"],
            replica["replica"],
            replica.get("version"),
            replica["state"] if replica["alive"] else "gone",
            age(now - replica["last_seen_ms"] / 1000),
            f"{replica['running']}/{replica['max_jobs']}" if replica["alive"] else None,
            *(replica.get(count) for count in ("complete", "failed", "retried")),
            age(now - replica["started_at"]) if replica["alive"] else None,
        )
        for q in queues
        for replica in q["replicas"]
    ]
    limit = size(redis["maxmemory"]) if redis["maxmemory"] else "no limit"
    show(
        {"healthy": not idle, **data},
        json,
        table(("queue", ">due", ">deferred", ">running", ">dead", ">oldest due", "state"), queue_rows),
        table(
            ("queue", "replica", "version", "state", ">seen", ">jobs", ">done", ">failed", ">retried", ">up"),
            replica_rows,
        ),
        f"{redis['server']} {redis['version']}: {size(redis['used_memory'])} of {limit}, {redis['policy']}, "
        f"answers in {redis['latency_ms']} ms",
    )
    raise typer.Exit(1 if idle else 0)


@app.command()
def probe(queue: Queues = None, json: Json = False) -> None:
    """Print one line that says whether the queues are served. For scripts and monitors.

    Exit code 0: each queue has a live replica.
    Exit code 1: a queue has no live replica.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    names = known(queue or project().served)

    async def read(pool: ArqRedis) -> dict[str, int]:
        return {name: live(await admin.queue_replicas(pool, full_name(name))) for name in names}

    alive = run(read)
    healthy = all(alive.values())
    counts = ", ".join(f"{name} {count}" for name, count in alive.items())
    show(
        {"healthy": healthy, "live_replicas": alive}, json, f"{'' if healthy else 'un'}healthy; live replicas: {counts}"
    )
    raise typer.Exit(0 if healthy else 1)
