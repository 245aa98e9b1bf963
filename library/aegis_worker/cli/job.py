"""``my-app job``: enqueue a job, follow it, abort it, run it again."""

from __future__ import annotations

import asyncio
import inspect
import json as jsonlib
from collections.abc import Awaitable
from datetime import datetime
from difflib import get_close_matches
from math import inf
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from arq.jobs import JobResult
from arq.utils import ms_to_datetime
from rich.text import Text

from aegis_worker.cli.errors import Failure, known, load, project, run
from aegis_worker.cli.output import Json, as_text, show, table
from aegis_worker.cli.queue import full_name, full_names
from aegis_worker.cli.task import tasks_of
from aegis_worker.queue import admin, keys
from aegis_worker.queue.admin import Found

app = typer.Typer(name="job", help="Enqueue, follow, abort and retry jobs.", no_args_is_help=True, add_completion=False)

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]
Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="The job's queue; default: search all.")]


async def _answered(asked: Awaitable[Found]) -> Found:
    """Return the answer. If the job is not found or the request is refused, end the command with exit code 1."""
    try:
        return await asked
    except (admin.NotFound, admin.Refused) as error:
        raise Failure(str(error), 1) from error


@app.command()
def enqueue(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A name that `task ls` prints.", show_default=False)],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGS]...",
            help="Each argument is read as JSON. If it is not JSON, it is text. "
            "Write `--` before arguments that begin with `-`.",
        ),
    ] = None,
    kwargs: Annotated[str, typer.Option(metavar="JSON", help="Named arguments: a JSON object.")] = "{}",
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the queue that has the task.")] = None,
    job_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="The job's id; default: a new one.")] = None,
    defer: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="The job is due after this time.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    json: Json = False,
) -> None:
    """Enqueue a job and print its id.

    Exit code 0: done.
    Exit code 1: the id exists already, or the job failed (with --wait).
    Exit code 2: unknown task or queue, the task does not take the arguments, or Redis cannot be reached.
    """
    positional, named = [_parsed(arg) for arg in args or ()], _parsed(kwargs)
    if not isinstance(named, dict):
        raise Failure(f"--kwargs {kwargs} is not a JSON object")
    target = _queue_of(task, queue, positional, named)

    async def send(pool: ArqRedis) -> tuple[str, JobResult | None]:
        job = await pool.enqueue_job(
            task, *positional, _job_id=job_id, _queue_name=full_name(target), _defer_by=defer or None, **named
        )
        if job is None:
            raise Failure(f"job {job_id} exists already", 1)
        return job.job_id, (
            await _answered(admin.follow(pool, job.job_id, [full_name(target)], inf))
        ).result if wait else None

    sent, ended = run(send)
    if ended:
        _show_result(sent, ended, json)
    else:
        show({"id": sent, "queue": target, "task": task}, json, sent)


def _parsed(text: str) -> Any:
    try:
        return jsonlib.loads(text)
    except ValueError:
        return text


def _queue_of(task: str, queue: str | None, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Return the queue that has the task. Raises ``Failure`` if none has it, or the arguments do not fit the task."""
    loaded, missing = load(known([queue]) if queue else project().names)
    if queue in missing:
        return queue  # its tasks cannot be loaded here, but its workers may know the task
    tasks = {name: tasks_of(settings_class) for name, settings_class in loaded.items()}
    having = [name for name, functions in tasks.items() if task in functions]
    if not having:
        names = sorted({name for functions in tasks.values() for name in functions})
        close = get_close_matches(task, names)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the tasks are {', '.join(names)}"
        reasons = "".join(f"; queue {name} cannot be loaded here: {reason}" for name, reason in missing.items())
        raise Failure(f"unknown task {task}: {hint}{reasons}")
    if len(having) > 1:
        raise Failure(f"task {task} is in {' and '.join(having)}: name one with --queue")
    try:
        inspect.signature(tasks[having[0]][task].coroutine).bind({}, *args, **kwargs)
    except TypeError as error:
        raise Failure(f"task {task} does not take these arguments: {error}") from error
    return having[0]


@app.command()
def status(job_id: Id, queue: Queue = None, json: Json = False) -> None:
    """Show what is known about a job.

    Exit code 0: done.
    Exit code 1: no such job.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    found = run(lambda pool: _answered(admin.find(pool, job_id, full_names(queue))))
    data: dict[str, Any] = {
        "id": job_id,
        "status": found.status.value,
        "queue": keys.short_name(found.queue_name),
        "tries": found.tries,
        "due": ms_to_datetime(found.due_ms) if found.due_ms is not None else None,
    }
    if found.definition:
        data |= {
            "function": found.definition.function,
            "args": found.definition.args,
            "kwargs": found.definition.kwargs,
            "enqueued": found.definition.enqueue_time,
        }
    if found.result:
        data |= {"started": found.result.start_time, "finished": found.result.finish_time, **_outcome(found.result)}
    show(data, json, table(("job", job_id), ((k, _cell(v)) for k, v in data.items() if v is not None and k != "id")))


def _cell(value: Any) -> str | Text:
    if isinstance(value, datetime):
        return value.isoformat(" ", "milliseconds")
    return value if isinstance(value, str) else Text(as_text(value))


@app.command()
def result(
    job_id: Id,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait at most this long for the result.")
    ] = 0,
    queue: Queue = None,
    json: Json = False,
) -> None:
    """Print a job's result.

    Exit code 0: done.
    Exit code 1: the job failed, has not ended yet, or is not known.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """
    found = run(lambda pool: _answered(admin.follow(pool, job_id, full_names(queue), timeout)))
    if found.result is None:
        raise Failure(f"job {job_id} has no result yet: it is {found.status.value}", 1)
    _show_result(job_id, found.result, json)


def _outcome(result: JobResult) -> dict[str, Any]:
    kind = "result" if result.success else "error"
    return {"success": result.success, kind: result.result if result.success else repr(result.result)}


def _show_result(job_id: str, ended: JobResult, json: bool) -> None:
    outcome = _outcome(ended)
    if json or ended.success:
        show({"id": job_id, **outcome}, json, _cell(ended.result))
    if not ended.success:
        raise Failure(f"job {job_id} failed: {outcome['error']}", 1)


@app.command()
def abort(
    job_id: Id,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait at most this long for the end of the job.")
    ] = 10,
    queue: Queue = None,
    json: Json = False,
) -> None:
    """Abort a job that waits or runs. A worker of its queue does it.

    Exit code 0: the job is aborted.
    Exit code 1: it had ended before, no worker has handled the request yet, or it is not known.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """

    found = run(lambda pool: _answered(admin.abort(pool, job_id, full_names(queue), timeout)))
    if found.result is None:
        raise Failure(f"job {job_id} is {found.status.value}. A worker of its queue will abort it.", 1)
    if not isinstance(found.result.result, asyncio.CancelledError):
        raise Failure(f"job {job_id} ended before it was aborted", 1)
    show({"id": job_id, "aborted": True}, json, f"job {job_id} is aborted")


@app.command()
def retry(job_id: Id, queue: Queue = None, json: Json = False) -> None:
    """Run a job again that has ended, with the same arguments and the same id. Its result must still be kept.

    Exit code 0: done.
    Exit code 1: the job has not ended, or is not known.
    Exit code 2: unknown queue, or Redis cannot be reached.
    """

    found = run(lambda pool: _answered(admin.retry(pool, job_id, full_names(queue))))
    name = keys.short_name(found.queue_name)
    show({"id": job_id, "queue": name}, json, f"job {job_id} is enqueued again in {name}")
