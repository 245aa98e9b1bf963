"""Env files, read as Compose reads them: what two readers might take differently is refused."""

import re
from pathlib import Path

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
_QUOTED = re.compile(r"""(["'])([^"'\\]*)\1(?: +#.*)?""")
_COMMENT = re.compile(" +#.*")


def parse(text: str) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Return a file's values, and the number of each wrong line with what is wrong with it."""
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    wrong = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        try:
            if assignment := _assignment(line):
                name, value = assignment
                if name in lines:
                    raise ValueError(f"{name} stands in line {lines[name]}, too: keep one of the two")
                lines[name], values[name] = number, value
        except ValueError as error:
            wrong.append((number, str(error)))
    return values, wrong


def read(file: Path) -> dict[str, str]:
    """Return the values of a file that may not exist. Wrong lines are left out: ``parse`` tells of them."""
    return parse(file.read_text(errors="replace"))[0] if file.is_file() else {}


def write(file: Path, name: str, value: str) -> None:
    """Set one variable in an env file: in its place where the file has it, else at the end. Other lines stay."""
    lines = file.read_text().splitlines() if file.exists() else ["# What this machine changes of the environment."]
    line = f"{name}={value}"
    written = [line if name in parse(each)[0] else each for each in lines]
    partial = file.with_suffix(".partial")
    partial.write_text("\n".join([*written, *([] if line in written else [line])]) + "\n")
    partial.replace(file)


def quoted(value: str) -> str:
    """Return a value that ``parse`` has read in the form in which a file can have it again."""
    if ("#" in value and "'" not in value) or value != value.strip():
        return f"'{value}'"
    return value.replace("$", "$$")


def _assignment(line: str) -> tuple[str, str] | None:
    """Return the name and the value of a line, or None if it has none. A ``ValueError`` says what is wrong."""
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
        in_quotes = _QUOTED.fullmatch(value)
        if not in_quotes:
            raise ValueError(f"{name}: a value in quotes ends with the same one and has no quote or \\ inside")
        value = in_quotes[2]
    else:
        value = _COMMENT.sub("", value)
    if quote != "'":
        if "$" in value.replace("$$", ""):
            raise ValueError(f"{name}: a $ is written $$, since Compose would put a variable there")
        value = value.replace("$$", "$")
    return name, value
