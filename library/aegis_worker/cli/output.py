"""Prints the answer of a command: one JSON document, or tables for people."""

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

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

PIPE_COLUMNS = 200


def show(data: Any, as_json: bool, *parts: RenderableType) -> None:
    """Print ``data`` as JSON, or else ``parts``, which are for people. A table without rows is left out."""
    if as_json:
        print(as_text(data), flush=True)
    else:
        # The text comes from outside, so brackets and colons in it must not be markup.
        # Without a terminal, rich uses 80 columns, and would break ids in two.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
        console = Console(markup=False, highlight=False, emoji=False, width=width)
        shown = [part for part in parts if not isinstance(part, Table) or part.row_count]
        for number, part in enumerate(shown):
            if number:
                console.print()
            # A line of text, for example an id, must stay one line.
            console.print(*([visible(part)] if isinstance(part, str) else [part]), soft_wrap=isinstance(part, str))
        sys.stdout.flush()


def as_text(data: Any) -> str:
    """Return data as JSON. The result of a job can have any type: what JSON lacks is shown as its ``repr``."""
    plain = to_jsonable_python(data, fallback=repr, bytes_mode="base64", inf_nan_mode="null")
    return visible(json.dumps(plain, indent=2, ensure_ascii=False))


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table. A title that begins with ``>`` makes a column of numbers, aligned to the right."""
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
    """``90`` → ``90s``, ``7200`` → ``2h``: the largest unit with a value of at least 2."""
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
