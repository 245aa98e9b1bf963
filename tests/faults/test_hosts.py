"""Hosts whose clocks are wrong, and replicas of stock arq beside ours."""

from __future__ import annotations

from tests.faults.fleet import SLOTS
from tests.faults.harness import Arena

STOCK_TIMEOUT_S = 1
FEW = 1  #: slots of ours, so that the slower stock workers get their share


async def test_clocks_that_differ(arena: Arena) -> None:
    """By half a minute either way, while workers are killed: jobs start when they are due, by the server's clock."""
    for skew in (0, 30, -30):
        await arena.fleet.start(1, skew=skew)

    async def strike() -> None:
        if member := arena.fleet.any():
            await arena.fleet.kill(member)
            await arena.fleet.replace(member)

    taken = await arena.run(strike, drained_within_s=10)
    assert arena.fleet.faults
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_ours_killed_beside_stock_workers(arena: Arena) -> None:
    stock = await arena.fleet.start(2, stock=True)
    await arena.fleet.start(2, slots=FEW)

    async def strike() -> None:
        if member := arena.fleet.any(stock=False):
            await arena.fleet.kill(member)
            await arena.fleet.replace(member)

    taken = await arena.run(strike)
    assert arena.fleet.faults
    assert sum(taken.by_pid[member.pid] for member in stock) > len(arena.jobs) / 20
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_stock_workers_stopped_beside_ours(arena: Arena) -> None:
    """They cancel their jobs, which is a try each; what they leave locked comes free after 10 s more than its limit."""
    stock = await arena.fleet.start(2, stock=True, timeout=STOCK_TIMEOUT_S)
    await arena.fleet.start(2, slots=FEW)

    async def strike() -> None:
        if member := arena.fleet.any(stock=True):
            arena.fleet.faults += 1
            await arena.fleet.stop(member, disturbs=True)
            stock.append(await arena.fleet.replace(member))

    taken = await arena.run(strike)
    assert arena.fleet.faults
    assert sum(taken.by_pid[member.pid] for member in stock) > len(arena.jobs) / 20
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS
