"""``my-app worker``: serve queues."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from aegis_worker.cli.errors import known, project
from aegis_worker.process import supervisor

app = typer.Typer(add_completion=False)


@app.command()
def worker(
    queue: Annotated[
        list[str] | None, typer.Option("--queue", metavar="NAME", help="A queue to serve. Repeat the option for more.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load the settings and the code of the queues, then exit. Serve no queue."),
    ] = False,
) -> None:
    """Serve queues until a signal, with WORKER_PROCESSES processes for each queue, 1 by default.

    Without --queue it serves WORKER_QUEUES. SIGTERM or Ctrl-C drains. A second one cancels the jobs that still run.

    Exit code 0: stopped after a signal, without errors.
    Exit code 2: a setting or Redis has to be fixed first.
    Any other: the exit code of the process that ended unexpectedly.
    """
    names = known(queue or project().served)
    for name in names:
        project().config.overrides(name)  # an error is reported once here, and not by each process
    if check:
        asyncio.run(_make(names))
        return
    raise typer.Exit(supervisor.run(project(), names))


async def _make(names: list[str]) -> None:
    """Make the workers of queues, as their processes do, but do not run them."""
    for name in names:
        project().make_worker(name)
