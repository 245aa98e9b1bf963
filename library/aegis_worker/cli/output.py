"""What a command prints: one JSON document, or tables to read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aegis_worker.text import visible

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]

PIPE_COLUMNS = 200


def show(data: Any, as_json: bool, *parts: RenderableType) -> None:
    """Print ``data`` as JSON, or else ``parts``, which show it to people; a table without rows is left out."""
    if as_json:
        print(as_text(data), flush=True)
    else:
        # What is shown comes from outside: brackets and colons in it are no markup.
        # Where there is no terminal, rich takes 80 columns, and breaks ids in two.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
        console = Console(markup=False, highlight=False, emoji=False, width=width)
        shown = [part for part in parts if not isinstance(part, Table) or part.row_count]
        for number, part in enumerate(shown):
            if number:
                console.print()
            # A line of text, an id say, stays one.
            console.print(*([visible(part)] if isinstance(part, str) else [part]), soft_wrap=isinstance(part, str))
        sys.stdout.flush()


def as_text(data: Any) -> str:
    """Return data as JSON; what JSON lacks, and a job's result can be anything, is shown as Python shows it."""
    plain = to_jsonable_python(data, fallback=repr, bytes_mode="base64", inf_nan_mode="null")
    return visible(json.dumps(plain, indent=2, ensure_ascii=False))


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table; a column whose title begins with ``>`` holds numbers."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in columns:
        result.add_column(
            visible(title.lstrip(">"), ""), justify="right" if title.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        result.add_row(*map(_cell, row))
    return result


def _cell(value: object) -> str | Text:
    if value is None:
        return "–"
    if isinstance(value, Text):
        return value
    return f"{value:,}" if isinstance(value, int) else visible(str(value), "")


def age(seconds: float | None) -> str | None:
    """``90`` → ``90s``, ``7200`` → ``2h``: the largest unit that leaves two digits or so."""
    if seconds is None:
        return None
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def size(octets: float) -> str:
    """``1536`` → ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if octets < 1024:
            return f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} GiB"
