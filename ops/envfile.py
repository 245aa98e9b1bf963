"""Env files, read as Compose reads them: what two readers might take differently is refused."""

from __future__ import annotations

import re

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
_QUOTED = re.compile(r"""(["'])([^"'\\]*)\1(?: +#.*)?""")
_COMMENT = re.compile(" +#.*")


def parse(text: str) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Return a file's values, and for each line that is none its number and what is wrong with it."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    bad = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        try:
            if read := _assignment(line):
                name, value = read
                if name in lines:
                    raise ValueError(f"{name} stands in line {lines[name]}, too: keep one of the two")
                lines[name], values[name] = number, value
        except ValueError as error:
            bad.append((number, str(error)))
    return values, bad


def _assignment(line: str) -> tuple[str, str] | None:
    """Return name and value of a line, None of one that has none. Raises ``ValueError``, which says what is wrong."""
    if odd := next((char for char in line if not char.isprintable() and char != "\t"), None):
        what = "a byte order mark" if odd == "\ufeff" else f"the invisible character U+{ord(odd):04X}"
        raise ValueError(f"{what} is in the line: delete it")
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    match = _LINE.fullmatch(line)
    if not match:
        raise ValueError(f"not NAME=value: {line}")
    name, value = match[1], match[2]
    if "\t" in value:
        raise ValueError(f"{name}: a tab is in the value: write blanks")
    if value.startswith("#"):
        raise ValueError(f"{name}: a value that begins with # stands in quotes, a comment in a line of its own")
    quote = value[:1]
    if quote in ("'", '"'):
        quoted = _QUOTED.fullmatch(value)
        if not quoted:
            raise ValueError(f"{name}: a value in quotes ends with the same one and has no quote or \\ inside")
        value = quoted[2]
    else:
        value = _COMMENT.sub("", value)
    if quote != "'":
        if "$" in value.replace("$$", ""):
            raise ValueError(f"{name}: a $ is written $$, since Compose would put a variable there")
        value = value.replace("$$", "$")
    return name, value
