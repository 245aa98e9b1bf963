"""What a worker does after a poll, by what it has seen."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from aegis_worker.worker.idle import BLOCKED_POLL_S, IDLE_POLL_S, Again, Busy, Next, Park, Seen, Wait, after
from aegis_worker.worker.phase import Life, Phase

POLL_S = 0.5
NOTHING = Seen(free=10, wanted=10, jobs=0, notified=True)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # nothing is due
        (NOTHING, Park(IDLE_POLL_S)),
        (replace(NOTHING, next_s=3), Park(3)),
        (replace(NOTHING, next_s=60), Park(IDLE_POLL_S)),
        (replace(NOTHING, next_s=0.05), Wait(0.05)),
        (replace(NOTHING, next_s=0), Wait(0)),
        (replace(NOTHING, notified=False), Wait(POLL_S)),
        (replace(NOTHING, notified=False, next_s=0.1), Wait(0.1)),
        (replace(NOTHING, began_to_listen=True), Again()),
        # what is due cannot be had
        (replace(NOTHING, blocked=True), Park(BLOCKED_POLL_S)),
        (replace(NOTHING, blocked=True, next_s=0.2), Park(0.2)),
        (replace(NOTHING, limited=True, next_s=0.3), Busy(0.3)),
        (replace(NOTHING, limited=True, next_s=inf), Busy(IDLE_POLL_S)),
        (replace(NOTHING, limited=True, blocked=True, jobs=10, next_s=2), Busy(2)),
        # some were due
        (replace(NOTHING, jobs=4), Park(IDLE_POLL_S)),
        (replace(NOTHING, jobs=4, began_to_listen=True), Again()),
        (replace(NOTHING, jobs=10), Busy()),
        (replace(NOTHING, jobs=10, reclaimed=True), Again()),
        # there are more slots than a claim takes jobs, or the claim waited in Redis for one
        (Seen(free=500, wanted=128, jobs=128), Again()),
        (Seen(free=500, wanted=128, jobs=127), Wait(POLL_S)),
        (Seen(free=10, wanted=1, jobs=1, notified=True), Again()),
        (Seen(free=1, wanted=1, jobs=1, notified=True), Busy()),
    ],
)
def test_after_a_poll(seen: Seen, expected: Next) -> None:
    assert after(seen, POLL_S) == expected


def test_phases_go_one_way() -> None:
    life = Life()
    life.enter(Phase.OPENING)
    life.enter(Phase.SERVING)
    life.enter(Phase.SERVING)  # another burst
    assert not life.stopping
    life.enter(Phase.CLOSED)
    assert life.stopping
    with pytest.raises(RuntimeError, match="a worker that is closed cannot be serving again"):
        life.enter(Phase.SERVING)


def test_a_second_signal_ends_the_drain() -> None:
    life = Life()
    assert life.drain(60)
    assert (life.phase, life.drained) == (Phase.DRAINING, False)
    assert not life.drain(60)
    assert (life.phase, life.drained) == (Phase.DRAINING, True)
