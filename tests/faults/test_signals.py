"""Workers that die, stand still or are told to stop, at any time."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from aegis_worker.settings import STOP_MARGIN_S
from tests.conftest import eventually
from tests.faults.fleet import LEASE_S, SLOTS, Member
from tests.faults.harness import Arena
from tests.faults.load import Job


async def test_killed_workers(arena: Arena) -> None:
    """What ran in a killed worker runs once more, and only that."""
    await arena.fleet.start(3)

    async def strike() -> None:
        if member := arena.fleet.any():
            await arena.fleet.kill(member)
            await arena.fleet.replace(member)

    taken = await arena.run(strike)
    assert arena.fleet.faults
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_workers_paused_for_longer_than_their_lease(arena: Arena) -> None:
    """What they come back with is fenced off."""
    await arena.fleet.start(3)

    async def strike() -> None:
        if member := arena.fleet.any():
            arena.aside(arena.fleet.pause(member, LEASE_S * arena.rng.uniform(1.2, 1.6)))

    taken = await arena.run(strike)
    assert arena.fleet.faults
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_workers_paused_for_less_than_their_lease(arena: Arena) -> None:
    await arena.fleet.start(3, lease=3)

    async def strike() -> None:
        if member := arena.fleet.any():
            arena.aside(arena.fleet.pause(member, arena.rng.uniform(0.05, LEASE_S / 2)))

    taken = await arena.run(strike, exact_tries=True)
    assert arena.fleet.faults
    assert taken.repeats == 0


async def test_workers_that_drain_on_sigterm(arena: Arena) -> None:
    """At any time: while they start, in their first claims, in hooks. No job is cut short, no try is burnt."""
    await arena.fleet.start(3, hooks=0.02)

    async def strike() -> None:
        if member := arena.fleet.any():
            await arena.fleet.replace(member)
            arena.aside(stopped_in_good_order(arena, member))

    taken = await arena.run(strike, exact_tries=True)
    assert arena.fleet.faults
    assert taken.repeats == 0


async def test_workers_that_cancel_on_sigterm(arena: Arena) -> None:
    """With no time to drain, or a second signal while they do: jobs go back, and no try is burnt."""
    for job in list(arena.jobs.values())[::5]:  # so that there are always some to cancel
        job.function, job.args, job.tries, job.succeeds = "work", (arena.rng.uniform(0.2, 0.6),), 1, True
    await arena.fleet.start(3, hooks=0.02, drain=0)

    async def strike() -> None:
        if member := arena.fleet.any():
            await arena.fleet.spawn(hooks=0.02, drain=arena.rng.choice([0, 5]))
            again_after_s = arena.rng.choice([None, arena.rng.uniform(0, 0.2)])
            arena.aside(stopped_in_good_order(arena, member, again_after_s=again_after_s, disturbs=True))

    taken = await arena.run(strike, exact_tries=True)
    assert 0 < taken.repeats <= arena.fleet.faults * SLOTS


async def stopped_in_good_order(arena: Arena, member: Member, **how: Any) -> None:
    arena.fleet.faults += 1
    assert member.in_order(await arena.fleet.stop(member, **how)), member.log.read_text()


# -- how long a stop takes, and that `shutdown` has run by then ----------------------------------------------------


async def test_a_signal_while_a_worker_starts_cancels_the_start(arena: Arena) -> None:
    member = await arena.fleet.spawn(startup=60, drain=30)
    await eventually(lambda: member.said("starting"))
    begun = monotonic()
    assert member.in_order(await arena.fleet.stop(member)), member.log.read_text()
    assert monotonic() - begun < 1.5
    assert member.said("shut down")
    assert not member.said("started")


async def test_a_signal_before_a_worker_starts_keeps_it_from_that(arena: Arena) -> None:
    for _ in range(5):
        member = await arena.fleet.spawn(startup=60, drain=30)
        await eventually(lambda: member.said("armed"))  # noqa: B023
        begun = monotonic()
        assert member.in_order(await arena.fleet.stop(member)), member.log.read_text()
        assert monotonic() - begun < 1.5


async def holding(arena: Arena, job: Job, **options: Any) -> Member:
    """Start a worker, and have it run a job."""
    (member,) = await arena.fleet.start(1, **options)
    await arena.add("held", job)
    await eventually(lambda: arena.ledger.redis.exists("runs:held"))
    return member


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("gone", ["killed", "silent"])
async def test_a_stop_without_redis(arena: Arena, gone: str, twice: bool) -> None:
    """Of a job that is cancelled, and with the time-outs that are shipped: nothing waits for Redis to come back."""
    drain_s = 20 if twice else 3
    member = await holding(arena, Job("work", (60,)), drain=drain_s, socket_timeout=10)
    if gone == "killed":
        arena.server.kill()
        await eventually(lambda: member.said("next try in"))
    else:
        arena.server.pause()
    begun = monotonic()
    code = await arena.fleet.stop(member, again_after_s=0.2 if twice else None)
    took = monotonic() - begun
    assert member.in_order(code), member.log.read_text()
    assert (0 if twice else drain_s) <= took < (0.2 if twice else drain_s) + STOP_MARGIN_S - 2


async def test_a_stop_while_idle_without_redis(arena: Arena) -> None:
    (member,) = await arena.fleet.start(1, drain=30)
    arena.server.kill()
    await eventually(lambda: member.log.read_text().count("next try in") > 4)
    begun = monotonic()
    assert member.in_order(await arena.fleet.stop(member)), member.log.read_text()
    assert monotonic() - begun < 1.5, "the wait before the next try is some 4 s by now"


@pytest.mark.parametrize("raises", ["startup", "shutdown"])
async def test_a_hook_that_raises_ends_the_process(arena: Arena, raises: str) -> None:
    member = await arena.fleet.spawn(raises=raises)
    if raises == "shutdown":
        await eventually(lambda: member.said("started"))
        assert await arena.fleet.stop(member) == 1
    member.busy = True
    assert await member.process.wait() == 1
    said = member.log.read_text()
    assert said.count("shut down") == 1
    assert "shutdown raised" in said
    assert said.splitlines()[-1] == ("ValueError: the start" if raises == "startup" else "RuntimeError: the end")
