"""What people read: messages on standard error, tables on standard output."""

import sys
from collections.abc import Sequence


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str | int]]) -> str:
    """Return rows, of which the first is the head, as lines with columns. Numbers stand to the right."""
    right = [any(isinstance(cell, int) for cell in column) for column in zip(*rows, strict=True)]
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in texts
    )
