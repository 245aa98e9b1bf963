"""Env files: what is read of them is what Compose reads, for itself and for containers, and python-dotenv."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dotenv import dotenv_values
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ops.config import envfile

PROBE = {"services": {"probe": {"image": "none", "env_file": ["read.env"]}}}
blank = st.text(" \t", max_size=2)
value = st.text("ab1 \t$#'\"\\=:{}!é%`~", max_size=12) | st.text(max_size=6)
quoted = st.builds("{0}{1}{0}{2}".format, st.sampled_from("'\""), value, st.sampled_from(["", " ", " # c", "#c", "x"]))
assigned = st.builds("".join, st.tuples(blank, st.sampled_from(["", "export ", "export\t"]), st.just("NAME"), blank))
line = st.builds("".join, st.tuples(assigned, st.sampled_from(["=", "=", "=", ":", ""]), blank, value | quoted, blank))
lines = st.lists(line | st.sampled_from(["", "  ", "# c", " # NAME=1"]), min_size=30, max_size=60)


def compose(folder: Path, text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return what Compose has of an env file for its own variables, and what it would give a container."""
    (folder / "read.env").write_bytes(text.encode())
    (folder / "compose.json").write_text(json.dumps(PROBE))
    command = ["docker", "compose", "--env-file", "read.env", "--file", "compose.json", "config"]

    def run(*options: str) -> str:
        return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=True).stdout

    own = dict(found.split("=", 1) for found in run("--environment").split("\n") if found.startswith("NAME_"))
    inside = json.loads(run("--format", "json"))["services"]["probe"]["environment"] or {}
    return own, {name: value.replace("$$", "$") for name, value in inside.items()}


@given(lines=lines, end=st.sampled_from(["\n", "\r\n"]))
@examples(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_not_refused_is_what_the_others_read(lines: list[str], end: str) -> None:
    # Names of their own, so that a file holds many examples; those refused are left out.
    named = [text.replace("NAME", f"NAME_{number}", 1) for number, text in enumerate(lines)]
    kept = end.join(text for text in named if not envfile.parse(text)[1])
    ours, bad = envfile.parse(kept)
    assert bad == []
    with TemporaryDirectory() as folder:
        assert compose(Path(folder), kept) == (ours, ours)
        app = dotenv_values(Path(folder, "read.env"))
    assert {name: text for name, text in app.items() if text and "$" not in text} == {
        name: text for name, text in ours.items() if text and "$" not in text
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1\n\ufeffB=2", "a byte order mark is in the line"),
        ("A=1\nB=\0", "the invisible character U+0000"),
        ("A=1\nB=2\x0b", "the invisible character U+000B"),
        ("A=1\nB=2\u00a0", "the invisible character U+00A0"),
        ("A=1\nB=2\r\r\n", "the invisible character U+000D"),
        ("A=1\nB", "not NAME=value: B"),
        ("A=1\nB: 2", "not NAME=value: B: 2"),
        ("A=1\nA-B=2", "not NAME=value: A-B=2"),
        ("A=1\nA=2", "A stands in line 1, too: keep one of the two"),
        ("A=1\nB='it", "B: a value in quotes ends with the same one"),
        ('A=1\nB="a"b', "B: a value in quotes ends with the same one"),
        ('A=1\nB="a\\nb"', "B: a value in quotes ends with the same one"),
        ("A=1\nB=pa$word", "B: a $ is written $$"),
        ('A=1\nB="${A}"', "B: a $ is written $$"),
        ("A=1\nB=$$$", "B: a $ is written $$"),
        ("A=1\nB=2\t# c", "B: a tab is in the value"),
        ("A=1\nB= # c", "B: a value that begins with # stands in quotes"),
    ],
)
def test_what_readers_would_take_differently_is_refused_by_line(text: str, said: str) -> None:
    values, ((number, found),) = envfile.parse(text)
    assert (values, number) == ({"A": "1"}, 2)
    assert re.match(re.escape(said), found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=1 # c", "1"),
        ("A=a#b", "a#b"),
        (' export A = "x # y"  # c', "x # y"),
        ("A='p$$w'", "p$$w"),
        ("A=p$$w", "p$w"),
        ('A={"b": 3}', '{"b": 3}'),
        ("A=", ""),
    ],
)
def test_values(text: str, value: str) -> None:
    assert envfile.parse(text) == ({"A": value}, [])


@pytest.mark.parametrize("value", ["plain", "a$b", "a #b", "#b", " a ", '{"A": 3}', "it's", ""])
def test_what_was_read_can_be_written_again(value: str) -> None:
    assert envfile.parse(f"A={envfile.quoted(value)}") == ({"A": value}, [])
