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
        list[str] | None, typer.Option("--queue", metavar="NAME", help="A queue to serve; repeat it for more.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Serve none: load the settings and the code of the queues, and end.")
    ] = False,
) -> None:
    """Serve queues until a signal, with WORKER_PROCESSES processes for each, 1 by default.

    Serves WORKER_QUEUES when no queue is named. SIGTERM and Ctrl-C drain; the second one cancels what still runs.

    Exit code 0: stopped in good order.
    Exit code 2: a setting or Redis has to be fixed first.
    Any other: that of the process that ended unasked.
    """
    names = known(queue or project().served)
    for name in names:
        project().config.overrides(name)  # what is wrong there is said once and by its name, not by each process
    if check:
        asyncio.run(_make(names))
        return
    raise typer.Exit(supervisor.run(project(), names))


async def _make(names: list[str]) -> None:
    """Make the workers of queues, as their processes do, and have them do nothing."""
    for name in names:
        project().make_worker(name)
