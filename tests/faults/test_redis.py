"""A Redis that is killed and comes back, and one that is full."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic

import pytest

from tests.conftest import eventually
from tests.faults.fleet import LEASE_S, SLOTS
from tests.faults.harness import Arena
from tests.faults.load import QUEUE

ALWAYS = {"appendfsync": "always"}
COMES_BACK_S = 6  #: until all workers have noticed that Redis is back, by their back-off


@pytest.mark.parametrize("arena", [ALWAYS], indirect=True, ids=["always"])
async def test_redis_killed(arena: Arena) -> None:
    """Again and again, each time for less than a lease: nothing is lost, and nothing runs twice."""
    await arena.fleet.start(3, lease=5)

    async def strike() -> None:
        arena.fleet.faults += 1
        arena.server.kill()
        await asyncio.sleep(arena.rng.uniform(0, 0.5))
        await arena.server.start()
        await arena.redis.ping()

    taken = await arena.run(strike, every_s=0.5, drained_within_s=60)
    assert arena.fleet.faults
    assert taken.repeats == 0


@pytest.mark.parametrize("arena", [ALWAYS], indirect=True, ids=["always"])
async def test_redis_away_for_longer_than_a_lease(arena: Arena) -> None:
    """While workers die: what they had runs once more, as does what nobody could renew in time."""
    await arena.fleet.start(3)
    gone = False

    async def strike() -> None:
        nonlocal gone
        if gone:
            return
        gone = True
        begun = monotonic()
        arena.fleet.faults += 1
        arena.server.kill()
        killed = arena.fleet.any()
        assert killed
        await arena.fleet.kill(killed)
        await asyncio.sleep(LEASE_S * 1.2)
        await arena.server.start()
        await arena.fleet.replace(killed)
        for member in arena.fleet.members:
            arena.fleet.disturb(member, begun, monotonic() + COMES_BACK_S if member.alive else inf)

    taken = await arena.run(strike, every_s=0.3, drained_within_s=60)
    assert gone
    assert taken.repeats <= 3 * 2 * SLOTS


async def test_redis_full(arena: Arena) -> None:
    """Producers are refused and wait; workers go on, since what they finish makes room."""
    await arena.fleet.start(2)

    async def is_empty() -> bool:
        return await arena.redis.zcard(QUEUE) == 0

    before = (await arena.redis.config_get("maxmemory"))["maxmemory"]

    async def strike() -> None:
        arena.fleet.faults += 1
        used = (await arena.redis.info("memory"))["used_memory"]
        await arena.redis.config_set("maxmemory", used * 9 // 10)
        await eventually(is_empty)
        await arena.redis.config_set("maxmemory", before)

    taken = await arena.run(strike, exact_tries=True)
    assert arena.fleet.faults
    assert taken.repeats == 0
