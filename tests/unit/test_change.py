"""A change of a stack and its rehearsal, without a stack: what is on record, what is undone, what is only said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ops.config import OpsError
from ops.config.load import load
from ops.engine import journal
from ops.engine.change import change
from ops.engine.stack import Rehearsal, Stack
from ops.engine.terminal import table
from ops.release.bundle import _is_ignored


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(journal, "path", lambda environment: tmp_path / environment)
    return Stack(load("dev", shell={}))


def make(stack: Stack, does: Callable[[], object], done: list[str]) -> None:
    with change(
        stack,
        "restore",
        begun={"file": "/a"},
        undo=lambda: done.append("undo"),
        undone="it is as before",
        interrupted="interrupted",
        finish=lambda: done.append("finish"),
        file="a",
    ):
        does()


def entries(stack: Stack) -> list[dict[str, object]]:
    return [
        {key: value for key, value in entry.items() if key not in ("at", "by", "seconds", "event")}
        for entry in journal.read(stack.name)
    ]


BEGUN = {"file": "/a", "outcome": "begun"}


def test_a_change_is_begun_and_done(stack: Stack) -> None:
    done: list[str] = []
    make(stack, lambda: done.append("do"), done)
    assert done == ["do", "finish"]
    assert entries(stack) == [BEGUN, {"file": "a", "outcome": "done"}]


def fails() -> None:
    raise OpsError("no room")


def is_interrupted() -> None:
    raise KeyboardInterrupt


def test_a_change_that_fails_is_undone(stack: Stack) -> None:
    done: list[str] = []
    with pytest.raises(OpsError, match=r"^no room; it is as before$"):
        make(stack, fails, done)
    assert done == ["undo"]
    assert entries(stack) == [BEGUN, {"file": "a", "outcome": "failed", "reason": "no room"}]


def test_an_interrupted_change_can_be_finished(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        make(stack, is_interrupted, done)
    assert done == []
    assert capsys.readouterr().err == "interrupted\n"
    assert journal.unfinished(stack.name, "restore")


def test_a_rehearsal_prints_and_does_nothing(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    rehearsal = Rehearsal(stack.environment).with_variables(REDIS_IMAGE="redis:7")
    make(rehearsal, lambda: rehearsal.change("do it", lambda: done.append("do")), [])
    assert rehearsal.run(["docker", "compose", "up it"]) == 0
    assert rehearsal.take(["docker", "stop"]) == ""
    rehearsal.write("A", "1")
    rehearsal.tell("done")
    with rehearsal.alone("up"):
        pass
    assert done == []
    assert entries(stack) == []
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "# do it",
        "env REDIS_IMAGE=redis:7 docker compose 'up it'",
        "docker stop",
        "# write A=1 into env/dev.local.env",
    ]
    assert printed.err == ""


def test_a_table_has_numbers_to_the_right() -> None:
    assert table([("name", "days", "of"), ("a", 7, "x"), ("longer", 3650, "")]) == (
        "name    days  of\na          7  x\nlonger  3650"
    )


@pytest.mark.parametrize(
    ("file", "ignored"),
    [
        ("secrets/prod/redis_password", True),
        ("ops/secrets/passwords.py", False),
        ("env/dev.local.env", True),
        ("a/__pycache__/b.pyc", True),
        ("env/dev.env", False),
    ],
)
def test_what_git_ignores(file: str, ignored: bool) -> None:
    assert _is_ignored(Path(file), ["/secrets", "env/*.local.env", "__pycache__"]) == ignored
