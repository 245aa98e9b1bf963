"""Payloads: what is sent comes back as it was, what is not ours is refused, and nothing that comes in runs."""

from __future__ import annotations

import asyncio
import json
import pickle
import resource
import subprocess
import sys
import types
import urllib.error
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from arq.jobs import deserialize_job, deserialize_result, serialize_job, serialize_result
from msgspec import msgpack

from app.cli import task
from app.core import serializer as module
from app.core.serializer import Format, PayloadError, RemoteError, Serializer, register
from tests.conftest import ROOT

OURS: tuple[Format, ...] = ("msgpack", "json")
KEY, OTHER_KEY = "k" * 32, "o" * 32


def job(*args: object, **kwargs: object) -> dict[str, Any]:
    return {"t": None, "f": "task", "a": args, "k": kwargs, "et": 1_790_000_000_000}


def result(value: object) -> dict[str, Any]:
    more = {"s": True, "r": value, "st": 1, "ft": 2, "q": "arq:queue:system", "id": "x"}
    return job() | more


def through(serializer: Serializer, value: object) -> Any:
    """Send a value there and back, as an argument and as a result, which have to come out alike."""
    (as_argument,) = serializer.loads(serializer.dumps(job(value)))["a"]
    as_result = serializer.loads(serializer.dumps(result(value)))["r"]
    assert type(as_argument) is type(as_result)
    return as_result


@pytest.fixture(params=OURS)
def ours(request: pytest.FixtureRequest) -> Serializer:
    return Serializer(request.param)


@register
class Colour(Enum):
    RED = 1
    BLUE = "blue"


@register
class Rights(Flag):
    READ = 1
    WRITE = 2


@register
@dataclass(frozen=True, slots=True)
class Line:
    text: str
    parts: tuple[int, ...] = ()
    length: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.text))


@dataclass
class NotRegistered:
    x: int = 1


class NotRegisteredEnum(Enum):
    A = 1


class Point(NamedTuple):
    x: int


# -- values ----------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    -(2**64),
    0.1,
    -0.0,
    1e300,
    float("inf"),
    float("-inf"),
    "",
    "ünïcode \U0001f600 \0",
    b"",
    b"\x80\x04\xff",
    [],
    [1, [2, (3,)]],
    (),
    (1, (2, [3])),
    {},
    {"a": {"b": ()}},
    {1: 2, None: 3, b"x": 4, (5, 6): 7, 2.5: 8, date(2026, 1, 2): 9},
    {"$tuple": [1]},
    {"$": 1},
    {"$dict": {"$x": []}, "$y": 1},
    set(),
    {1, "a", (2, 3)},
    frozenset({1, frozenset({2})}),
    datetime(2026, 2, 3, 4, 5, 6, 7),
    datetime(2026, 2, 3, 4, 5, 6, 7, UTC),
    datetime(2026, 2, 3, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime.max,
    date(2026, 2, 3),
    time(4, 5, 6, 7),
    time(4, tzinfo=UTC),
    timedelta(days=-1, seconds=2, microseconds=3),
    timedelta.max,
    UUID(int=2**127),
    Decimal("1.10"),
    Decimal("-Infinity"),
    Decimal("1e1000"),
    Colour.RED,
    Colour.BLUE,
    Rights.WRITE,
    Line("a", (1, 2)),
    [Line("b"), {"c": Line("d")}],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_each_value_comes_back_as_it_was(ours: Serializer, value: object) -> None:
    back = through(ours, value)
    assert (type(back), back) == (type(value), value)
    # `==` takes 1 for True and 0.0 for -0.0, a list's items likewise.
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset))


def test_an_int_may_have_any_size(ours: Serializer) -> None:
    assert through(ours, [1 << 100_000, 0]) == [1 << 100_000, 0]


def test_nan_comes_back(ours: Serializer) -> None:
    assert repr(through(ours, [float("nan")])) == "[nan]"


def test_a_time_zone_comes_back_as_its_offset(ours: Serializer) -> None:
    from zoneinfo import ZoneInfo

    there = datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert through(ours, there).isoformat() == there.isoformat()


def test_arguments_are_a_tuple_and_kwargs_a_dict(ours: Serializer) -> None:
    back = ours.loads(ours.dumps(job(1, (2,), x={3})))
    assert back == job(1, (2,), x={3})


def test_arq_takes_it(ours: Serializer) -> None:
    sent = serialize_job("task", (1, {2}), {"x": b"3"}, None, 5, serializer=ours.dumps)
    read = deserialize_job(sent, deserializer=ours.loads)
    assert (read.function, read.args, read.kwargs) == ("task", (1, {2}), {"x": b"3"})
    ended = serialize_result(
        "task", (), {}, 1, 5, False, KeyError("x"), 6, 7, "ref", "queue", "id", serializer=ours.dumps
    )
    assert ended is not None
    assert repr(deserialize_result(ended, deserializer=ours.loads).result) == "KeyError('x')"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "a builtins.object cannot be carried"),
        (print, "a builtins.builtin_function_or_method cannot be carried"),
        (int, "a builtins.type cannot be carried"),
        (Point(1), "test_serializer.Point cannot be carried"),
        (OrderedDict(), "a collections.OrderedDict cannot be carried"),
        (bytearray(b"x"), "a builtins.bytearray cannot be carried"),
        (NotRegistered(), "NotRegistered cannot be carried: register it"),
        (NotRegisteredEnum.A, "NotRegisteredEnum cannot be carried: register it"),
        (Rights.READ | Rights.WRITE, "it is no single member"),
    ],
)
def test_what_would_not_come_back_as_it_was_is_refused(ours: Serializer, value: object, said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        ours.dumps(job([value]))


def test_a_value_that_holds_itself_is_refused(ours: Serializer) -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        ours.dumps(job(endless))


# -- classes ---------------------------------------------------------------------------------------------------------


def test_a_registered_class_keeps_its_own_checks(ours: Serializer) -> None:
    back = through(ours, Line("four"))
    assert back.length == 4


def test_only_dataclasses_and_enums_are_registered_each_name_once() -> None:
    with pytest.raises(TypeError, match="Point is neither a dataclass nor an enum"):
        register(Point)
    clash = dataclass(type("Line", (), {"__module__": "elsewhere", "__qualname__": "Line"}))
    with pytest.raises(ValueError, match="a registered class Line already"):
        register(clash)


def test_a_class_that_is_not_registered_is_not_made(ours: Serializer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._registered, "NotRegistered", NotRegistered)
    sent = ours.dumps(job(NotRegistered()))
    monkeypatch.delitem(module._registered, "NotRegistered")
    with pytest.raises(PayloadError, match="no class NotRegistered is registered here"):
        ours.loads(sent)


def test_the_cli_imports_tasks_where_a_payload_names_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Serializer()
    monkeypatch.setitem(module._registered, "NotRegistered", NotRegistered)
    sent = ours.dumps(job(NotRegistered()))
    monkeypatch.delitem(module._registered, "NotRegistered")
    loading = partial(monkeypatch.setitem, module._registered, "NotRegistered", NotRegistered)
    monkeypatch.setattr(task, "load", lambda names: loading())
    pool: Any = types.SimpleNamespace(job_deserializer=ours.loads)
    assert task.decoded(deserialize_job, sent, pool).args == (NotRegistered(),)


# -- exceptions ------------------------------------------------------------------------------------------------------


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


# -- what is refused -------------------------------------------------------------------------------------------------


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_loaded(ours: Serializer, tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "canary"
    sent = pickle.dumps(job(Canary(file)), protocol)
    said = "payload is a pickle, WORKER_SERIALIZER is" if protocol > 1 else "payload is in no known format"
    with pytest.raises(PayloadError, match=said):
        ours.loads(sent)
    assert not file.exists()
    pickle.loads(sent)
    assert file.exists(), "the canary works"


def test_the_other_formats_are_told_apart() -> None:
    for wanted in ("msgpack", "json", "pickle"):
        for sent in {"msgpack", "json", "pickle"} - {wanted}:
            name = "a pickle" if sent == "pickle" else sent
            with pytest.raises(PayloadError, match=f"^payload is {name}, WORKER_SERIALIZER is {wanted}$"):
                Serializer(wanted).loads(Serializer(sent).dumps(job()))


def test_pickle_is_arqs_own() -> None:
    ours = Serializer("pickle")
    assert ours.loads(serialize_job("task", (Point(1),), {}, None, 1_790_000_000_000)) == job(Point(1))
    assert pickle.loads(ours.dumps(job(Point(1)))) == job(Point(1))


def test_msgpack_and_json_of_other_languages_are_taken() -> None:
    record = {"t": None, "f": "task", "a": [1, "x"], "k": {}, "et": 1_790_000_000_000}
    assert Serializer("json").loads(json.dumps(record).encode()) == job(1, "x")
    assert Serializer("msgpack").loads(msgpack.encode(record)) == job(1, "x")


NESTED_EXT = b"\xc0"
for _ in range(20_000):
    NESTED_EXT = b"\xc9" + len(NESTED_EXT).to_bytes(4, "big") + b"\x02" + NESTED_EXT
HEAD = b"\x85\xa1t\xc0\xa1f\xa1x\xa1k\x80\xa1et\x00\xa1a"  # a job, as far as its arguments

BOMBS = {
    "empty": b"",
    "pickle's first byte": b"\x80",
    "signed, then nothing": b"S",
    "no map": b"\x91\xc0",
    "truncated": HEAD,
    "array of 4 billion": HEAD + b"\xdd\xff\xff\xff\xff",
    "arrays of a million, each in the other": HEAD + b"\xdd\x00\x10\x00\x00" * 200_000,
    "map of 4 billion": HEAD + b"\xdf\xff\xff\xff\xff",
    "text of 4 billion": HEAD + b"\xdb\xff\xff\xff\xff",
    "extension of 4 billion": HEAD + b"\xc9\xff\xff\xff\xff\x02",
    "deep": HEAD + b"\x91" * 1_000_000 + b"\xc0",
    "deep maps": HEAD + b"\x81\xa0" * 500_000 + b"\xc0",
    "deep extensions": HEAD + NESTED_EXT,
    "arguments are a number": HEAD + b"\x05",
    "unknown extension": HEAD + b"\xd4\x7fx",
    "negative extension": HEAD + b"\xd4\xfex",
    "no text": HEAD + b"\x91\xa1\xff",
    "no date": HEAD + b"\x91" + msgpack.encode(msgpack.Ext(list(module._MAKERS).index("date"), b"\xa3abc")),
    "json, deep": b'{"a":' + b"[" * 1_000_000,
    "json, deep objects": b'{"a":' * 200_000,
    "json, deep tags": b'{"$tuple":' * 50_000 + b"[]" + b"}" * 50_000,
    "json, a number of a million digits": b'{"a":' + b"9" * 1_000_000 + b"}",
    "json, truncated": b'{"a":"',
    "json, no record": b'{"$int":"0x5"}',
    "json, no text": b'{"a":"\xff"}',
    "json, an unhashable key": b'{"a":[{"$dict":[[[],1]]}],"k":{},"f":"x","et":0,"t":null}',
    "json, too long a time": b'{"a":[{"$timedelta":[1e300,0,0]}],"k":{},"f":"x","et":0,"t":null}',
    "json, unknown tag": b'{"a":[{"$eval":"1"}],"k":{},"f":"x","et":0,"t":null}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
def test_a_bomb_is_an_error_and_takes_little_memory(bomb: bytes, keys: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for format in OURS:
        serializer = Serializer(format, signing_keys=keys)
        data = module.SIGNED + module._sign(serializer._keys[0], bomb) + bomb if keys else bomb
        with pytest.raises(Exception) as caught:  # noqa: PT011 - arq takes any
            serializer.loads(data)
        assert isinstance(caught.value, Exception)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# -- signatures ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["msgpack", "json", "pickle"])
def format(request: pytest.FixtureRequest) -> Format:
    return request.param  # type: ignore[no-any-return]


def test_what_is_signed_is_taken_by_who_has_the_key(format: Format) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    sent = signed.dumps(job(1))
    assert signed.loads(sent) == job(1)
    with pytest.raises(PayloadError, match="signed with another key than WORKER_SIGNING_KEY, or was changed"):
        Serializer(format, signing_keys=[OTHER_KEY]).loads(sent)
    with pytest.raises(PayloadError, match="there is no WORKER_SIGNING_KEY to check it by"):
        Serializer(format).loads(sent)


def test_the_first_key_signs_and_each_verifies(format: Format) -> None:
    old, both, new = (Serializer(format, signing_keys=keys) for keys in ([KEY], [OTHER_KEY, KEY], [OTHER_KEY]))
    assert both.loads(old.dumps(job())) == job()
    assert new.loads(both.dumps(job())) == job()
    with pytest.raises(PayloadError):
        new.loads(old.dumps(job()))


def test_with_a_key_nothing_unsigned_is_loaded(format: Format, tmp_path: Path) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    file = tmp_path / "canary"
    for sent in (Serializer(format).dumps(job()), pickle.dumps(job(Canary(file)))):
        with pytest.raises(PayloadError, match="payload is not signed, though there is a WORKER_SIGNING_KEY"):
            signed.loads(sent)
    assert not file.exists()


def test_no_byte_of_what_is_signed_can_be_changed(format: Format) -> None:
    signed = Serializer(format, signing_keys=[KEY])
    sent = signed.dumps(job("x"))
    for at in range(len(sent)):
        for changed in (sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :], sent[:at]):
            with pytest.raises(PayloadError):
                signed.loads(changed)
    with pytest.raises(PayloadError):
        signed.loads(sent + b"\0")


def test_a_signature_made_for_something_else_is_none() -> None:
    import hmac

    payload = Serializer().dumps(job())
    elsewhere = hmac.digest(KEY.encode(), payload, "sha256")
    with pytest.raises(PayloadError):
        Serializer(signing_keys=[KEY]).loads(module.SIGNED + elsewhere + payload)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
def test_a_payload_has_a_largest_size_both_ways(format: Format, keys: tuple[str, ...]) -> None:
    small, large = (Serializer(format, signing_keys=keys, max_bytes=most) for most in (10_000, 1_000_000))
    assert small.loads(small.dumps(job(b"x" * 5000)))
    with pytest.raises(PayloadError, match=r"payload of 1\d,\d\d\d bytes is larger than 10,000, WORKER_MAX_PAYLOAD_"):
        small.dumps(job("x" * 10_000))
    for size in (10_000, 30_000):  # before and after it is decoded
        with pytest.raises(PayloadError, match="larger than"):
            small.loads(large.dumps(job("x" * size)))


def test_a_result_has_room_beside_the_largest_payload(format: Format) -> None:
    small = Serializer(format, max_bytes=10_000)
    record = result("y" * 9000) | {"a": ("x" * 9900,)}
    assert small.loads(small.dumps(record)) == record
    said = "result of .* bytes, with the job's arguments, is larger than 20,000, twice WORKER_MAX_PAYLOAD_BYTES"
    with pytest.raises(PayloadError, match=said):
        small.dumps(result("y" * 20_000))


# -- as a file of its own --------------------------------------------------------------------------------------------


def test_it_needs_msgspec_alone(tmp_path: Path) -> None:
    (tmp_path / "payloads.py").write_text((ROOT / "app" / "core" / "serializer.py").read_text())
    check = "import payloads, sys; assert not {'app', 'arq', 'redis', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)
