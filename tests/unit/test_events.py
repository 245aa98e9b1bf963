"""Events of several sources, told once and in order."""

from __future__ import annotations

import pytest

from ops.config import OpsError
from ops.look.events import FLAPPING_S, Event, seconds, without_flapping


def health(*states: tuple[float, str], of: str = "worker-1") -> list[Event]:
    return [Event(at, state, of) for at, state in states]


def test_bad_health_is_told_once_with_its_end() -> None:
    flapping = health(*((at, "unhealthy" if at % 20 else "healthy") for at in range(10, 110, 10)))
    assert list(without_flapping(flapping)) == [
        Event(10, "unhealthy", "worker-1", "5 times"),
        Event(100, "healthy", "worker-1", "again"),
    ]


def test_health_after_a_start_goes_without_saying() -> None:
    start = Event(0, "started", "worker-1")
    assert list(without_flapping([start, *health((2, "healthy"))])) == [start]


def test_two_times_apart_and_two_containers_are_told_each() -> None:
    one = health((0, "unhealthy"), (1, "healthy"), (FLAPPING_S + 2, "unhealthy"))
    two = health((5, "unhealthy"), of="redis-1")
    told = list(without_flapping(sorted([*one, *two], key=lambda event: event.at)))
    assert sorted((event.at, event.event, event.of) for event in told) == [
        (0, "unhealthy", "worker-1"),
        (1, "healthy", "worker-1"),
        (5, "unhealthy", "redis-1"),
        (FLAPPING_S + 2, "unhealthy", "worker-1"),
    ]


def test_the_same_is_the_same_within_seconds() -> None:
    event = Event(100, "ended", "worker-1", "exit code 1")
    assert event.is_same(Event(101.5, "ended", "worker-1"))
    assert not event.is_same(Event(103, "ended", "worker-1"))
    assert not event.is_same(Event(100, "ended", "worker-2"))


def test_people_may_do_a_thing_twice_within_seconds() -> None:
    scaled = Event(100, "scale", "worker", "replicas 2", "ada")
    assert scaled.is_same(Event(100, "scale", "worker", "replicas 2", "ada"))
    assert not scaled.is_same(Event(101, "scale", "worker", "replicas 1", "ada"))


def test_lengths_of_time() -> None:
    assert [seconds(text) for text in ("90s", "30m", "2h", "7d")] == [90, 1800, 7200, 604800]
    for text in ("x", "2", "h", "-1h", "1.5h"):
        with pytest.raises(OpsError, match="a length of time is a number and s, m, h or d"):
            seconds(text)
