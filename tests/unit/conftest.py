"""What the tests of the serializer share."""

from __future__ import annotations

from typing import Any

import pytest

from aegis_worker.payload import Format, Serializer

OURS: tuple[Format, ...] = ("msgpack", "json")


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
