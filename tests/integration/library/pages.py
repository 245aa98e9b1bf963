"""What the pages show: files, snippets, commands and tables."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def page(name: str) -> str:
    return (ROOT / name).read_text()


def files(name: str) -> dict[str, str]:
    """Return the files that a page shows, each under a line with its path."""
    return dict(re.findall(r"^`(\S+)`:\n\n```python\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL))


def snippets(name: str) -> list[str]:
    """Return a page's other pieces of Python."""
    text = re.sub(r"^`\S+`:\n\n```python\n.*?^```", "", page(name), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]


def execute(code: str, space: dict[str, Any]) -> None:
    exec(compile(code, "page", "exec", dont_inherit=True), space)


def commands(name: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)


def table(name: str, head: str) -> list[str]:
    """Return the names in code type of the first column of the table that begins with these words."""
    rows = page(name).partition(f"| {head} |")[2].split("\n\n")[0].splitlines()[2:]
    return [found for row in rows for found in re.findall(r"`(\w+)`", row.split("|")[1])]


def write(folder: Path, shown: dict[str, str]) -> None:
    for path, text in shown.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
