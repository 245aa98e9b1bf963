"""Exceptions as payloads: which come back, and that no code of a writer's choice runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import types
import urllib.error
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from aegis_worker import payload as module
from aegis_worker.payload import RemoteError, Serializer
from tests.unit.conftest import result, through


class Plain(Exception):
    pass


class Noisy(Exception):
    """Notes whatever of its own code runs."""

    ran: list[str] = []  # noqa: RUF012

    def __new__(cls, *args: object) -> Noisy:
        cls.ran.append("new")
        return super().__new__(cls, *args)

    def __init__(self, *args: object) -> None:
        self.ran.append("init")
        super().__init__(*args)

    def __setattr__(self, name: str, value: object) -> None:
        self.ran.append("setattr")
        super().__setattr__(name, value)


class NeedsMore(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code)
        self.why = why

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.why}"


class DiskError(OSError):
    def __init__(self, disk: str) -> None:
        super().__init__(f"disk {disk}")


class Outer:
    class Inner(ValueError):
        pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("x", 1, (2,)),
        KeyError("key"),
        TimeoutError("late"),
        ZeroDivisionError(),
        FileNotFoundError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ImportError("x"),
        asyncio.CancelledError(),
        ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])]),
        Plain("x", 1),
        Outer.Inner("nested"),
        DiskError("C"),
        subprocess.SubprocessError("x"),
    ],
    ids=repr,
)
def test_an_exception_comes_back(ours: Serializer, error: BaseException) -> None:
    back = through(ours, error)
    assert (type(back), str(back)) == (type(error), str(error))
    if not isinstance(error, DiskError):
        assert repr(back) == repr(error)


def test_an_oserror_keeps_what_was_wrong_with_which_file(ours: Serializer) -> None:
    back = through(ours, PermissionError(13, "Permission denied", "/etc/shadow"))
    assert (back.errno, back.filename) == (13, "/etc/shadow")


def test_its_traceback_is_a_note(ours: Serializer) -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as error:
        (note,) = through(ours, error).__notes__
    assert note.startswith("In the worker:\nTraceback")
    assert "test_its_traceback_is_a_note" in note
    assert "KeyError: 'first'" in note
    assert note.endswith("ValueError: second\n")
    assert not hasattr(through(ours, ValueError("never raised")), "__notes__")


def test_a_long_traceback_is_cut(ours: Serializer) -> None:
    try:
        raise ValueError("x" * 100_000 + "end")
    except ValueError as error:
        (note,) = through(ours, error).__notes__
    assert len(note) < module.MAX_TRACEBACK + 100
    assert note.endswith("end\n")


def test_what_would_say_something_else_is_told_of(ours: Serializer) -> None:
    back = through(ours, NeedsMore(5, why="because"))
    assert type(back) is RemoteError
    assert str(back) == f"{__name__}.NeedsMore: 5: because"
    broken = urllib.error.HTTPError("http://x", 404, "gone", None, BytesIO())  # type: ignore[arg-type]
    assert str(through(ours, broken)) == "urllib.error.HTTPError: HTTP Error 404: gone"


def test_an_argument_that_cannot_be_carried_leaves_class_and_text(ours: Serializer) -> None:
    back = through(ours, ValueError(object))
    assert (type(back), str(back)) == (ValueError, str(object))


def test_no_code_of_its_class_runs(ours: Serializer) -> None:
    sent = ours.dumps(result(Noisy("x")))
    Noisy.ran.clear()
    back = ours.loads(sent)["r"]
    assert (type(back), back.args, Noisy.ran) == (Noisy, ("x",), [])


def error_of(ours: Serializer, where: str, name: str, *args: object) -> Any:
    """What comes of a payload that names a class of the writer's choice."""
    parts = [where, name, list(args), "the text", ""]
    record = result(None) | {"a": []}
    if ours.format == "json":
        return ours.loads(json.dumps(record | {"r": {"$error": parts}}).encode())["r"]
    code = list(module._MAKERS).index("error")
    return ours.loads(msgpack.encode(record | {"r": msgpack.Ext(code, msgpack.encode(parts))}))["r"]


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Modules that note when they are touched, and one that is not imported yet."""
    touched: list[str] = []

    class Proxy:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            touched.append("proxy")
            return ValueError

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> object:
            touched.append("lazy")
            return super().__getattribute__(name)

    class Meta(type):
        def __getattr__(cls, name: str) -> object:
            touched.append("meta")
            return ValueError

    trap = types.ModuleType("trap")
    trap.__getattr__ = lambda name: touched.append("getattr")  # type: ignore[method-assign]
    trap.proxy, trap.Meta = Proxy(), Meta("Meta", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trap", trap)
    monkeypatch.setitem(sys.modules, "trap_lazy", Lazy("trap_lazy"))
    touched.clear()
    (tmp_path / "trap_not_imported.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield touched
    assert touched == []
    assert "trap_not_imported" not in sys.modules


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "BaseExceptionGroup"),
        ("builtins", "eval"),
        ("builtins", "object"),
        ("builtins", "nothing"),
        ("builtins", ""),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("builtins", "ValueError.__init__"),
        ("builtins", "UnicodeDecodeError"),  # takes five arguments
        ("trap_not_imported", "Error"),
        ("trap", "Error"),
        ("trap", "proxy"),
        ("trap", "Meta.Error"),
        ("trap_lazy", "Error"),
    ],
)
def test_a_class_of_the_writers_choice_is_not_made(ours: Serializer, where: str, name: str) -> None:
    made = error_of(ours, where, name, "id > /tmp/x")
    assert type(made) is RemoteError
    assert str(made) == f"{where}.{name}: the text"
