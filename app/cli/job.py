"""``my-app job``: send a job, follow it, end it, run it again."""

from __future__ import annotations

import asyncio
import inspect
import json as jsonlib
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from time import monotonic
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from arq.jobs import (
    DeserializationError,
    JobDef,
    JobResult,
    JobStatus,
    deserialize_job,
    deserialize_result,
    serialize_job,
)
from arq.utils import ms_to_datetime, timestamp_ms
from redis.exceptions import WatchError
from rich.text import Text

from app.cli.errors import Failure, known, run
from app.cli.output import Json, as_text, show, table
from app.cli.queue import full_name, time_of
from app.cli.task import decoded, load, tasks_of
from app.components.worker import queues
from app.components.worker.runtime import keys
from app.components.worker.runtime.execution import UNREAD
from app.components.worker.runtime.scripts import tries_over

app = typer.Typer(name="job", help="Jobs: send, follow, abort, retry.", no_args_is_help=True, add_completion=False)

POLL_S = 0.05

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]
Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Its queue; all are searched by default.")]


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis has of a job."""

    job_id: str
    status: JobStatus
    queue_name: str
    due_ms: int | None  #: None once it has begun: its score says something else then
    tries: int  #: begun
    definition: JobDef | None  #: a ``JobResult`` once it has ended; None where the payload has expired

    @property
    def result(self) -> JobResult | None:
        return self.definition if isinstance(self.definition, JobResult) else None


async def find(pool: ArqRedis, job_id: str, queue: str | None) -> Found:
    """Look a job up by its result, or else in the queue, or in all of them where none is given."""
    names = [full_name(name) for name in (known([queue]) if queue else queues.names())]
    async with pool.pipeline(transaction=True) as pipe:
        pipe.mget([keys.RESULT + job_id, keys.JOB + job_id, keys.IN_PROGRESS + job_id, keys.RETRY + job_id])
        for name in names:
            pipe.zscore(name, job_id)
            pipe.zscore(keys.leases(name), job_id)
        (ended, payload, mark, over), *scores = await pipe.execute()
    try:
        if ended:
            result = decoded(deserialize_result, ended, pool)
            return Found(job_id, JobStatus.complete, result.queue_name, None, result.job_try, result)
        definition = decoded(deserialize_job, payload, pool) if payload else None
    except DeserializationError as error:
        raise Failure(f"job {job_id} cannot be read here: {error.__cause__}", 1) from error
    for name, score, lapses in zip(names, scores[::2], scores[1::2], strict=True):
        if score is not None:
            waits = JobStatus.deferred if score > timestamp_ms() else JobStatus.queued
            status = JobStatus.in_progress if mark else waits
            tries = tries_over(over) + (lapses is not None)
            return Found(job_id, status, name, None if mark else time_of(score), tries, definition)
    raise Failure(f"no job {job_id} in {', '.join(map(keys.short_name, names))}, and no result of it is kept", 1)


async def follow(pool: ArqRedis, job_id: str, queue: str | None, timeout_s: float) -> Found:
    """Wait until a job has ended, or for as long as ``timeout_s``."""
    deadline = monotonic() + timeout_s
    while True:
        found = await find(pool, job_id, queue)
        if found.result or monotonic() >= deadline:
            return found
        await asyncio.sleep(POLL_S)


@app.command()
def enqueue(
    task: Annotated[str, typer.Argument(metavar="TASK", help="As `task ls` names it.", show_default=False)],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGS]...", help="JSON where it is JSON, else text; after `--` also what begins with `-`."
        ),
    ] = None,
    kwargs: Annotated[str, typer.Option(metavar="JSON", help="Named arguments, a JSON object.")] = "{}",
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the one that has the task.")] = None,
    job_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Default: a new one.")] = None,
    defer: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait this long before it may run.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    json: Json = False,
) -> None:
    """Enqueue a job and print its id.

    Exit code 0: done.
    Exit code 1: the id exists already, or with --wait the job failed.
    Exit code 2: unknown task or queue, arguments that do not fit it, or Redis is out of reach.
    """
    positional, named = [_parsed(arg) for arg in args or ()], _parsed(kwargs)
    if not isinstance(named, dict):
        raise Failure(f"--kwargs {kwargs} is no JSON object")
    target = _queue_of(task, queue, positional, named)

    async def send(pool: ArqRedis) -> tuple[str, JobResult | None]:
        job = await pool.enqueue_job(
            task, *positional, _job_id=job_id, _queue_name=full_name(target), _defer_by=defer or None, **named
        )
        if job is None:
            raise Failure(f"job {job_id} exists already", 1)
        return job.job_id, (await follow(pool, job.job_id, target, float("inf"))).result if wait else None

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
    """Return the queue that has a task which takes these arguments."""
    loaded, missing = load(known([queue]) if queue else queues.names())
    if queue in missing:
        return queue  # its workers know the task, we do not
    tasks = {name: tasks_of(settings_class) for name, settings_class in loaded.items()}
    having = [name for name, functions in tasks.items() if task in functions]
    if not having:
        names = sorted({name for functions in tasks.values() for name in functions})
        close = get_close_matches(task, names)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise Failure(f"unknown task {task}: {hint}")
    if len(having) > 1:
        raise Failure(f"task {task} is in {' and '.join(having)}: name one with --queue")
    try:
        inspect.signature(tasks[having[0]][task].coroutine).bind({}, *args, **kwargs)
    except TypeError as error:
        raise Failure(f"task {task} does not take these arguments: {error}") from error
    return having[0]


@app.command()
def status(job_id: Id, queue: Queue = None, json: Json = False) -> None:
    """Show what is known of a job.

    Exit code 0: done.
    Exit code 1: no such job.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    found = run(lambda pool: find(pool, job_id, queue))
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
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait at most this long for it.")] = 0,
    queue: Queue = None,
    json: Json = False,
) -> None:
    """Print a job's result.

    Exit code 0: done.
    Exit code 1: the job failed, has not ended yet, or is not known.
    Exit code 2: unknown queue, or Redis is out of reach.
    """
    found = run(lambda pool: follow(pool, job_id, queue, timeout))
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
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait at most this long for its end.")] = 10,
    queue: Queue = None,
    json: Json = False,
) -> None:
    """Cancel a job, whether it waits or runs; a worker of its queue does it.

    Exit code 0: it is aborted.
    Exit code 1: it had ended before, no worker has seen to it yet, or it is not known.
    Exit code 2: unknown queue, or Redis is out of reach.
    """

    async def ask(pool: ArqRedis) -> Found:
        async with pool.pipeline(transaction=True) as pipe:
            # A mark on a job that has ended would abort the next one with its id. The payload goes when a job ends.
            await pipe.watch(keys.JOB + job_id)
            found = await find(pool, job_id, queue)
            if found.result:
                return found
            now = timestamp_ms()
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.zadd(keys.ABORT, {job_id: now})
            if found.status is JobStatus.deferred:
                pipe.zadd(found.queue_name, {job_id: now}, xx=True)  # for a worker to see it now
            try:
                await pipe.execute()
            except WatchError:
                return await find(pool, job_id, queue)
        return await follow(pool, job_id, queue, timeout)

    found = run(ask)
    if found.result is None:
        raise Failure(f"job {job_id} is {found.status.value}, and is aborted when a worker of its queue sees it", 1)
    if not isinstance(found.result.result, asyncio.CancelledError):
        raise Failure(f"job {job_id} ended before it was aborted", 1)
    show({"id": job_id, "aborted": True}, json, f"job {job_id} is aborted")


@app.command()
def retry(job_id: Id, queue: Queue = None, json: Json = False) -> None:
    """Run a job again that has ended, with the same arguments under the same id; its result has to be kept still.

    Exit code 0: done.
    Exit code 1: it has not ended, or is not known.
    Exit code 2: unknown queue, or Redis is out of reach.
    """

    async def again(pool: ArqRedis) -> Found:
        async with pool.pipeline(transaction=True) as pipe:
            await pipe.watch(keys.RESULT + job_id, keys.JOB + job_id)
            found = await find(pool, job_id, queue)
            if found.result is None:
                raise Failure(f"job {job_id} is {found.status.value}: only one that has ended can run again", 1)
            if found.result.function == UNREAD.function:
                raise Failure(f"job {job_id} had expired, or could not be read: what it was to do is not known", 1)
            now = timestamp_ms()
            what = (found.result.function, found.result.args, found.result.kwargs, None, now)
            payload = serialize_job(*what, serializer=pool.job_serializer)
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.delete(*(prefix + job_id for prefix in (keys.RESULT, keys.RETRY, keys.RAISED)))
            pipe.zrem(keys.ABORT, job_id)
            pipe.psetex(keys.JOB + job_id, pool.expires_extra_ms, payload)
            pipe.zadd(found.queue_name, {job_id: now})
            try:
                await pipe.execute()
            except WatchError:
                raise Failure(f"job {job_id} was enqueued by somebody else just now", 1) from None
            return found

    found = run(again)
    name = keys.short_name(found.queue_name)
    show({"id": job_id, "queue": name}, json, f"job {job_id} is enqueued again in {name}")
