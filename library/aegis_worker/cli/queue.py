"""``my-app queue``: list queues, show, purge, pause and resume one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from arq.connections import ArqRedis

from aegis_worker.cli.errors import known, load, load_all, project, run
from aegis_worker.cli.output import Json, age, show, table
from aegis_worker.cli.task import settings_of, tasks_of
from aegis_worker.queue import admin, keys

app = typer.Typer(
    name="queue", help="List, inspect, empty and pause queues.", no_args_is_help=True, add_completion=False
)

SHOWN = 20

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The name of the queue, for example `system`.", show_default=False)
]


def full_name(queue: str) -> str:
    """``media`` → ``arq:queue:media``."""
    return keys.QUEUE_PREFIX + queue


def full_names(queue: str | None) -> list[str]:
    """Return the full name of a queue, or the full names of all queues if it is None."""
    return [full_name(name) for name in (known([queue]) if queue else project().names)]


def live(replicas: list[dict[str, Any]]) -> int:
    """Return how many of a queue's replicas are alive."""
    return sum(replica["alive"] for replica in replicas)


@app.command()
def ls(json: Json = False) -> None:
    """List all queues: due, deferred and running jobs, and their replicas.

    Deferred jobs include those that wait for a retry.

    Exit code 0: done.
    Exit code 2: Redis cannot be reached.
    """
    _, missing = load_all()

    async def read(pool: ArqRedis) -> list[dict[str, Any]]:
        return [
            {
                **await admin.queue_counts(pool, full_name(queue)),
                "live_replicas": live(await admin.queue_replicas(pool, full_name(queue))),
                "not_loaded": missing.get(queue),
            }
            for queue in project().names
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
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    known([name])
    loaded, missing = load([name])
    data: dict[str, Any] = {"queue": name, "not_loaded": missing.get(name)}
    if settings_class := loaded.get(name):
        data |= settings_of(settings_class) | {"functions": list(tasks_of(settings_class))}
    data["jobs"] = run(lambda pool: admin.next_jobs(pool, full_name(name), SHOWN))
    jobs = [(j["id"], j["function"], age(j["due_in_s"]), j["tries"], j["state"]) for j in data["jobs"]]
    show(
        data,
        json,
        "\n".join(f"{key:<12} {_listed(value)}" for key, value in data.items() if key != "jobs" and value is not None),
        table(("next jobs", "function", ">due in", ">tries", "state"), jobs),
    )


def _listed(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value


@app.command()
def purge(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    json: Json = False,
) -> None:
    """Remove the jobs that wait in a queue, also deferred ones. Running jobs go on.

    Exit code 0: done.
    Exit code 1: not confirmed.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    known([name])
    depth = run(lambda pool: pool.zcard(full_name(name)))
    if depth and not yes:
        typer.confirm(
            f"Remove the jobs that wait in {name}? It has {depth:,} jobs, running ones included.", abort=True, err=True
        )

    # At most as many as there were, so that the command ends even if a producer is faster.
    removed = run(lambda pool: admin.purge(pool, full_name(name), depth))
    show({"queue": name, "removed": removed}, json, f"{removed:,} jobs removed from {name}")


@app.command()
def pause(name: Name, json: Json = False) -> None:
    """Pause a queue: workers start no more of its jobs. Running jobs go on.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    known([name])
    run(lambda pool: admin.pause(pool, full_name(name)))
    show({"queue": name, "paused": True}, json, f"{name} is paused: `queue resume {name}` ends it")


@app.command()
def resume(name: Name, json: Json = False) -> None:
    """Resume a paused queue: workers start its jobs again.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    known([name])
    run(lambda pool: admin.resume(pool, full_name(name)))
    show({"queue": name, "paused": False}, json, f"{name} is served")
