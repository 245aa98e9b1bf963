"""``my-app dead``: the jobs that ended without success."""

from __future__ import annotations

from time import time
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from arq.jobs import DeserializationError

from aegis_worker.cli.errors import Failure, known, project, run
from aegis_worker.cli.output import Json, age, show, table
from aegis_worker.cli.queue import full_name
from aegis_worker.queue import admin
from aegis_worker.text import visible

app = typer.Typer(
    name="dead", help="List, show, retry and discard dead letters.", no_args_is_help=True, add_completion=False
)

NAMED = 10  #: most ids in an error message

Queue = Annotated[list[str] | None, typer.Option("--queue", metavar="NAME", help="Only dead letters of this queue.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of jobs.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


async def _chosen(pool: ArqRedis, queue: list[str] | None, job_ids: list[str] | None, every: bool) -> dict[str, Any]:
    """Return the chosen ids of each queue. Raises ``Failure`` if an id has no dead letter."""
    if bool(job_ids) == every:
        raise Failure("name jobs by their ids, or choose all with --all")
    there = {name: await admin.dead_ids(pool, full_name(name)) for name in known(queue or project().names)}
    if every:
        return there
    asked = set(job_ids or ())
    if missing := asked.difference(*there.values()):
        raise Failure(f"no dead letter {', '.join(sorted(missing))} in {', '.join(there)}", 1)
    return {name: [job_id for job_id in found if job_id in asked] for name, found in there.items()}


@app.command()
def ls(
    queue: Queue = None,
    most: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Show the latest N of each queue.")] = 20,
    json: Json = False,
) -> None:
    """List dead letters, the latest first.

    Exit code 0: done.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    names = known(queue or project().names)

    async def read(pool: ArqRedis) -> list[dict[str, Any]]:
        letters = []
        for name in names:
            found = await admin.dead_letters(pool, full_name(name), await admin.dead_ids(pool, full_name(name), most))
            letters += [{"queue": name, **letter} for letter in found]
        return letters

    letters = run(read)
    now_ms = time() * 1000
    rows = [
        (d["queue"], d["id"], d["function"], d["reason"], d["tries"], age((now_ms - d["died_ms"]) / 1000), d["error"])
        for d in letters
    ]
    columns = ("queue", "job", "task", "reason", ">tries", ">died", "error")
    show(letters, json, table(columns, rows) if rows else "no dead letters")


@app.command("show")
def show_letter(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)],
    queue: Queue = None,
    json: Json = False,
) -> None:
    """Show a dead letter: arguments, error and traceback.

    Exit code 0: done.
    Exit code 1: there is no dead letter with this id.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """

    async def read(pool: ArqRedis) -> list[dict[str, Any]]:
        chosen = await _chosen(pool, queue, [job_id], every=False)
        return [
            {"queue": name, **_with_arguments(pool, letter)}
            for name, found in chosen.items()
            for letter in await admin.dead_letters(pool, full_name(name), found)
        ]

    letters = run(read)
    text = "\n\n".join(
        "\n".join(f"{key:<12} {visible(str(value), keep='')}" for key, value in letter.items() if key != "traceback")
        + f"\n\n{letter['traceback']}"
        for letter in letters
    )
    show(letters, json, text)


def _with_arguments(pool: ArqRedis, letter: dict[str, Any]) -> dict[str, Any]:
    """Return a letter with the arguments of the job instead of its payload, if the payload can be read."""
    try:
        args, kwargs = admin.arguments(pool, letter["payload"])
    except DeserializationError:
        return letter
    read = {name: value for name, value in letter.items() if name != "payload"}
    return read | {"args": args, "kwargs": kwargs}


@app.command()
def retry(job_ids: Ids = None, every: All = False, queue: Queue = None, json: Json = False) -> None:
    """Enqueue dead jobs again. They get all their tries.

    Exit code 0: done.
    Exit code 1: an id has no dead letter, or a job cannot run again.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """

    async def again(pool: ArqRedis) -> tuple[list[str], list[str]]:
        chosen = await _chosen(pool, queue, job_ids, every)
        revived = [job_id for name, ids in chosen.items() for job_id in await admin.revive(pool, full_name(name), ids)]
        done = set(revived)
        return revived, [job_id for ids in chosen.values() for job_id in ids if job_id not in done]

    revived, left = run(again)
    show({"retried": revived, "left": left}, json, f"{len(revived):,} jobs are enqueued again")
    if left:
        some = ", ".join(left[:NAMED]) + (" …" if len(left) > NAMED else "")
        why = "the payload had expired, or the id is in use again"
        raise Failure(f"{len(left):,} jobs were not enqueued: {why}: {some}", 1)


@app.command()
def discard(job_ids: Ids = None, every: All = False, queue: Queue = None, json: Json = False) -> None:
    """Delete dead letters.

    Exit code 0: done.
    Exit code 1: an id has no dead letter.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """

    async def delete(pool: ArqRedis) -> int:
        chosen = await _chosen(pool, queue, job_ids, every)
        return sum([await admin.discard(pool, full_name(name), ids) for name, ids in chosen.items()])

    count = run(delete)
    show({"discarded": count}, json, f"{count:,} dead letters deleted")
