"""Workers that die, stand still or are told to stop, at any time."""

from __future__ import annotations

from typing import Any

from tests.faults.fleet import LEASE_S, SLOTS, Member
from tests.faults.harness import Arena


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
