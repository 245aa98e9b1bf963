"""``my-app task``: the functions that workers run."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from arq.cron import CronJob
from arq.utils import to_seconds
from arq.worker import Function, Worker, func
from rich.text import Text

from aegis_worker.cli.errors import known, load, project
from aegis_worker.cli.output import Json, age, show, table

app = typer.Typer(name="task", help="The tasks that jobs name.", no_args_is_help=True, add_completion=False)

_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Worker).parameters.items()}


def settings_of(settings_class: type) -> dict[str, Any]:
    """Return the settings of a queue's workers, with arq's defaults. Durations are in seconds."""
    given = {name: vars(settings_class).get(name, default) for name, default in _DEFAULTS.items()}
    return {
        "max_jobs": given["max_jobs"],
        "job_timeout": to_seconds(given["job_timeout"]),
        "keep_result": to_seconds(given["keep_result"]),
        "max_tries": given["max_tries"],
        "rate_limit": vars(settings_class).get("rate_limit"),
        "global_concurrency": vars(settings_class).get("global_concurrency"),
    }


def tasks_of(settings_class: type) -> dict[str, Function | CronJob]:
    """Return the functions and cron jobs of a queue, by the names that jobs use."""
    functions = [*map(func, vars(settings_class)["functions"]), *(vars(settings_class).get("cron_jobs") or ())]
    return {function.name: function for function in functions}


@app.callback()
def task() -> None:
    """The tasks that jobs name."""


@app.command()
def ls(
    queue: Annotated[
        list[str] | None, typer.Option("--queue", metavar="NAME", help="Only tasks of this queue.")
    ] = None,
    json: Json = False,
) -> None:
    """List the tasks: their queues, parameters, timeouts and tries.

    Exit code 0: done.
    Exit code 2: unknown queue.
    """
    loaded, missing = load(known(queue or project().names))
    tasks = [
        _describe(name, function, settings_of(settings_class))
        for name, settings_class in loaded.items()
        for function in tasks_of(settings_class).values()
    ]
    data = {"tasks": tasks, "not_loaded": missing}
    rows = [
        (t["queue"], Text(f"{t['task']}{t['signature']}\n{t['summary']}"), age(t["timeout_s"]), t["max_tries"])
        for t in tasks
    ]
    notes = [f"{name} cannot be loaded here: {reason}" for name, reason in missing.items()]
    show(data, json, table(("queue", "task", ">timeout", ">tries"), rows), *notes)


def _describe(queue: str, function: Function | CronJob, settings: dict[str, Any]) -> dict[str, Any]:
    # Names and defaults only. The worker passes ctx. Types would be text if annotations are lazy.
    _, *parameters = inspect.signature(function.coroutine).parameters.values()
    return {
        "queue": queue,
        "task": function.name,
        "signature": str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])),
        "timeout_s": settings["job_timeout"] if function.timeout_s is None else function.timeout_s,
        "max_tries": settings["max_tries"] if function.max_tries is None else function.max_tries,
        "summary": next(iter((inspect.getdoc(function.coroutine) or "").splitlines()), ""),
    }
