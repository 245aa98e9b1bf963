"""Makes text from outside safe for a terminal."""

from __future__ import annotations

import re


def visible(text: str, keep: str = "\n\t") -> str:
    """Return text with control characters and invisible characters as ``\\uXXXX``, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return re.sub("(....)", r"\\u\1", char.encode("utf-16-be", "surrogatepass").hex())
