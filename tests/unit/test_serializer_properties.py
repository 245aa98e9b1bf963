"""Payloads of any shape: whatever values are sent come back, and whatever bytes come in do no harm."""

from __future__ import annotations

import contextlib
from datetime import timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from aegis_worker.payload import Serializer

DAY = timedelta(hours=23)
ALL = [Serializer("msgpack"), Serializer("json"), Serializer(signing_keys=["k" * 32])]


def carried(offset: timedelta) -> bool:
    return not offset or abs(offset) >= timedelta(seconds=1)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.builds(timezone, st.timedeltas(-DAY, DAY).filter(carried)))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
values = st.recursive(
    hashable | st.sets(hashable, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable | st.sampled_from(["$", "$tuple", "$dict", "$error"]), inner, max_size=3)
    ),
    max_leaves=20,
)


def record(value: object) -> dict[str, Any]:
    return {"t": None, "f": "task", "a": (value,), "k": {"x": value}, "et": 1_790_000_000_000}


@pytest.mark.parametrize("serializer", ALL, ids=["msgpack", "json", "signed"])
@given(value=values)
@examples(deadline=None, max_examples=60)
def test_what_is_sent_comes_back(serializer: Serializer, value: object) -> None:
    assert serializer.loads(serializer.dumps(record(value))) == record(value)


@pytest.mark.parametrize("serializer", ALL, ids=["msgpack", "json", "signed"])
@given(value=values, data=st.data())
@examples(deadline=None, max_examples=60)
def test_what_is_damaged_is_read_or_an_error(serializer: Serializer, value: object, data: st.DataObject) -> None:
    sent = bytearray(serializer.dumps(record(value)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sent) - 1))
        sent[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not sent:
            break
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, msgspec.MsgspecError):
        serializer.loads(bytes(sent))


@pytest.mark.parametrize("first", [b"", b"\x85", b"\x8b", b"{", b"S", b"\x80"])
@given(data=st.binary(max_size=200))
@examples(deadline=None, max_examples=100)
def test_junk_is_an_error(first: bytes, data: bytes) -> None:
    for serializer in ALL:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            serializer.loads(first + data)
        assert not isinstance(caught.value, MemoryError)
