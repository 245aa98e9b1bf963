"""Measure this worker beside its peers, in turn and in one run: `make bench`.

Every measurement has a server of its own with the project's redis.conf: the embedded Valkey, or the program that the
variable REDIS_SERVER names.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measures import measure
from benchmarks.processes import Failed, server_program
from benchmarks.sections import SECTIONS
from benchmarks.systems import SYSTEMS, System

PEERS = "peers"
HIGHER_IS_BETTER = ("jobs/s", "enqueue/s")

Row = dict[str, float] | str  #: figures, or why there are none

console = Console(width=170, highlight=False)


def _print(title: str, rows: dict[str, Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() if isinstance(row, dict) for column in row))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        if isinstance(row, dict):
            table.add_row(name, *(_figure(row[column]) if column in row else "–" for column in columns))
        else:
            table.add_row(name)
    console.print(f"\n[bold]{title}", table, sep="\n")
    for name, row in rows.items():
        if isinstance(row, str):
            console.print(f"{name} failed: {row}", style="red", markup=False)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _better(ours: dict[str, float], theirs: Row) -> Row:
    """How many times better the first is, in each figure."""
    if isinstance(theirs, str):
        return {}
    return {
        column: ours[column] / value if column in HIGHER_IS_BETTER else value / ours[column]
        for column, value in theirs.items()
        if ours.get(column)
    }


def version(program: Path) -> str:
    """What a server says of its version."""
    return subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()


async def compare(systems: list[System], scale: float) -> None:
    """Measure systems; the first one's ratios are to the others."""
    rows: dict[str, Row] = {}
    for system in systems:
        console.print(f"measuring {system.title}", style="dim")
        try:
            rows[system.title] = await measure(system, scale)
        except Failed as failure:
            rows[system.title] = str(failure)
    _print("One worker process each", rows)
    first, ours = next(iter(rows.items()))
    if isinstance(ours, dict) and len(rows) > 1:
        _print(f"So many times better is {first}", {name: _better(ours, row) for name, row in rows.items()})


async def measure_section(name: str, scale: float) -> None:
    """Measure one of ``SECTIONS``."""
    section = SECTIONS[name]
    rows: dict[str, Row] = {}
    console.print(f"measuring {name}", style="dim")
    try:
        async for title, figures in section(scale):
            rows[title] = dict(figures)
    except Failed as failure:
        rows["the next"] = str(failure)
    _print(f"{name}: {section.__doc__}", rows)


async def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", default=[PEERS], help=f"{PEERS} (default), {', '.join(SECTIONS)} or all")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only peers whose title has this; given again, those too"
    )
    parser.add_argument("--scale", type=float, default=1, help="share of the jobs and pick-ups, 0.1 for a quick look")
    options = parser.parse_args()
    known = [PEERS, *SECTIONS]
    wanted = known if "all" in options.sections else options.sections
    if unknown := set(wanted) - set(known):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    systems = [system for system in SYSTEMS if any(text in system.title for text in options.only or [""])]
    if not systems:
        parser.error(f"no such peer; there are {', '.join(system.title for system in SYSTEMS)}")
    try:
        console.print(version(server_program()), style="dim")
    except (OSError, subprocess.CalledProcessError) as error:
        parser.error(f"no server to measure with: {error}")
    for name in wanted:
        if name == PEERS:
            await compare(systems, options.scale)
        else:
            await measure_section(name, options.scale)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # rather than at once, with processes left behind
    asyncio.run(main())
