"""The decisions of the autoscaler, on a load that is played to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ops.release.autoscale import Sample, Scaler, _done_by_container

EVERY_S = 10
START_S = 10  #: until a new replica does anything
DAY_S = 24 * 3600
RATE = 20.0  #: jobs a second that one replica gets done


@dataclass
class Day:
    """What a load did to a queue, and the scaler about it."""

    ages: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(self.replicas, self.replicas[1:], strict=False))

    def share_within(self, seconds: float) -> float:
        return sum(age <= seconds for age in self.ages) / len(self.ages)


def play(load: Callable[[float], float], scaler: Scaler, seconds: int = DAY_S, replicas: int = 1) -> Day:
    """Play a load, in jobs a second by the time, to a queue and its replicas, second by second."""
    day, queue = Day(), [(0.0, 0.0)]
    queue.clear()  # when jobs came, and how many
    done = dict.fromkeys(range(replicas), 0.0)
    able_at = dict.fromkeys(range(replicas), 0.0)
    names = replicas
    for now in range(seconds):
        queue.append((now, load(now)))
        for name in done:
            able = RATE if now >= able_at[name] else 0.0
            while able > 0 and queue:
                came, jobs = queue[0]
                taken = min(able, jobs)
                able, done[name] = able - taken, done[name] + taken
                queue[0] = (came, jobs - taken)
                if jobs <= taken:
                    queue.pop(0)
        if now % EVERY_S == 0:
            waiting = int(sum(jobs for _, jobs in queue))
            oldest = now - queue[0][0] if waiting else 0.0
            day.ages.append(oldest)
            day.replicas.append(len(done))
            wanted = scaler.decide(
                Sample(now, waiting, oldest, {str(name): int(count) for name, count in done.items()}), len(done)
            )
            for name in list(done)[wanted:]:
                del done[name]
            while len(done) < wanted:
                done[names], able_at[names] = 0.0, now + START_S
                names += 1
    return day


def scaler(minimum: int = 1, maximum: int = 10) -> Scaler:
    return Scaler(minimum, maximum, target_s=5, steady_s=180)


def working_day(now: float) -> float:
    """Calm at night, some 120 jobs a second at noon, with three rushes to 150."""
    hour = now / 3600
    base = 5 + 115 * max(0.0, math.sin((hour - 6) / 12 * math.pi))
    return 150 if any(abs(hour - rush) < 0.1 for rush in (9, 13, 17)) else base


def test_a_day() -> None:
    day = play(working_day, scaler())
    assert day.share_within(5) > 0.99
    assert max(day.ages) < 30
    assert max(day.replicas) <= 10
    needed = sum(math.ceil(working_day(n * EVERY_S) / RATE) for n in range(len(day.replicas)))
    assert sum(day.replicas) < 1.25 * needed, "it does not keep what it does not need"
    assert day.changes < 40, "it does not go up and down all the time"
    assert day.replicas[-1] <= 2, "at night it is back at where it began"


@pytest.mark.parametrize("load", [10, 35, 90, 190])
def test_a_steady_load_comes_to_rest(load: float) -> None:
    day = play(lambda _: load, scaler(), seconds=4 * 3600)
    last_hour = Day(day.ages[-360:], day.replicas[-360:])
    assert last_hour.changes <= 2
    assert last_hour.share_within(5) > 0.97
    assert max(last_hour.replicas) <= math.ceil(load / RATE) * 1.5 + 1


def test_it_stays_within_its_bounds() -> None:
    day = play(lambda _: 1000, scaler(2, 4), seconds=3600)
    assert set(day.replicas[1:]) <= {2, 4}
    assert day.replicas[-1] == 4
    quiet = play(lambda _: 0, scaler(2, 4), seconds=3600, replicas=6)
    assert quiet.replicas[-1] == 2


def test_a_rise_is_followed_at_once_and_a_fall_after_a_while() -> None:
    day = play(lambda now: 100 if now < 1800 else 1, scaler(), seconds=3600)
    assert max(day.replicas[: 120 // EVERY_S]) >= 5
    assert day.replicas[1800 // EVERY_S + 10] == day.replicas[1800 // EVERY_S - 1]
    assert day.replicas[-1] <= 2


def test_processes_of_a_container_are_one_replica() -> None:
    def process(name: str, complete: int, *, alive: bool = True) -> dict[str, object]:
        return {"replica": name, "alive": alive, "complete": complete, "failed": 1, "retried": 0}

    queues = [
        {"replicas": [process("0a1b", 10), process("0a1b-2", 20), process("9f9f", 5, alive=False)]},
        {"replicas": [process("0a1b", 30), process("77aa", 40)]},
    ]
    assert _done_by_container(queues) == {"0a1b": 63, "77aa": 41}
