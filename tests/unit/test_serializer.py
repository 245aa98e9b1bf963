"""Payloads: what is sent comes back as it was, what is not ours is refused, and nothing that comes in runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from typing import NamedTuple
from uuid import UUID

import pytest
from arq.jobs import deserialize_job, deserialize_result, serialize_job, serialize_result

from aegis_worker import payload as module
from aegis_worker.cli import errors
from aegis_worker.payload import PayloadError, Serializer, register
from tests.unit.conftest import job, through


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
        (object(), "a builtins.object cannot be in a payload"),
        (print, "a builtins.builtin_function_or_method cannot be in a payload"),
        (int, "a builtins.type cannot be in a payload"),
        (Point(1), "test_serializer.Point cannot be in a payload"),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(microseconds=1))), "its offset is less than a second"),
        (OrderedDict(), "a collections.OrderedDict cannot be in a payload"),
        (bytearray(b"x"), "a builtins.bytearray cannot be in a payload"),
        (NotRegistered(), "NotRegistered cannot be in a payload: register it"),
        (NotRegisteredEnum.A, "NotRegisteredEnum cannot be in a payload: register it"),
        (Rights.READ | Rights.WRITE, "it combines several members"),
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
    with pytest.raises(ValueError, match="a class Line is registered already"):
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
    monkeypatch.setattr(errors, "load_all", loading)
    read = deserialize_job(sent, deserializer=errors._with_tasks(ours.loads))
    assert read.args == (NotRegistered(),)
