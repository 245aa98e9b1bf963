"""A Redis that is killed and comes back, and one that is full."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import eventually
from tests.faults.fleet import LEASE_S, SLOTS
from tests.faults.harness import Arena
from tests.faults.load import QUEUE

ALWAYS = {"appendfsync": "always"}
EVERYSEC = {"appendfsync": "everysec"}
SLOW_TO_LOAD = {"key-load-delay": "300", "loading-process-events-interval-bytes": "1024"}  # µs each, for tests alone


@pytest.mark.parametrize(
    ("arena", "written_out"), [(ALWAYS, False), (EVERYSEC, True)], indirect=["arena"], ids=["always", "everysec"]
)
async def test_redis_killed(arena: Arena, written_out: bool) -> None:
    """Again and again, each time for less than a lease: nothing is lost, and nothing runs twice."""
    await arena.fleet.start(3, lease=5)

    async def strike() -> None:
        arena.fleet.faults += 1
        if written_out:
            await arena.server.write_out()
        arena.server.kill()
        await asyncio.sleep(arena.rng.uniform(0, 0.5))
        await arena.server.start()
        await arena.redis.ping()

    taken = await arena.run(strike, every_s=0.5, drained_within_s=60)
    assert arena.fleet.faults
    assert taken.repeats == 0


@pytest.mark.parametrize("arena", [ALWAYS | SLOW_TO_LOAD], indirect=True, ids=["slow to load"])
async def test_redis_that_loads(arena: Arena) -> None:
    """It is there, and answers that it cannot serve yet."""
    async with arena.redis.pipeline(transaction=False) as pipe:
        for n in range(8000):
            pipe.set("to be loaded", n)
        await pipe.execute()
    await arena.fleet.start(3, lease=8)
    loaded = False

    async def strike() -> None:
        nonlocal loaded
        if not loaded:
            loaded = True
            arena.fleet.faults += 1
            arena.server.kill()
            await arena.server.start()

    taken = await arena.run(strike, drained_within_s=60)
    assert loaded
    assert any(member.said("is loading the dataset in memory") for member in arena.fleet.members)
    assert taken.repeats == 0


@pytest.mark.parametrize("stands_still", [False, True], ids=["killed", "stands still"])
@pytest.mark.parametrize("arena", [ALWAYS], indirect=True, ids=["always"])
async def test_redis_away_while_all_workers_live(arena: Arena, stands_still: bool) -> None:
    """For longer than a lease: each renews its own before others claim, so that nothing runs twice."""
    await arena.fleet.start(3)
    gone = False

    async def strike() -> None:
        nonlocal gone
        if not gone:
            gone = True
            arena.fleet.faults += 1
            if stands_still:
                arena.server.pause()
                await asyncio.sleep(LEASE_S * 1.2)
                arena.server.resume()
            else:
                arena.server.kill()
                await asyncio.sleep(LEASE_S * 1.2)
                await arena.server.start()

    taken = await arena.run(strike, every_s=0.3, drained_within_s=60)
    assert gone
    assert taken.repeats == 0


@pytest.mark.parametrize("arena", [ALWAYS], indirect=True, ids=["always"])
async def test_redis_away_for_longer_than_a_lease(arena: Arena) -> None:
    """While a worker dies: what it had runs once more, and nothing else, though nobody could renew in time."""
    await arena.fleet.start(3)
    gone = False

    async def strike() -> None:
        nonlocal gone
        if gone:
            return
        gone = True
        arena.fleet.faults += 1
        arena.server.kill()
        killed = arena.fleet.any()
        assert killed
        await arena.fleet.kill(killed)
        await asyncio.sleep(LEASE_S * 1.2)
        await arena.server.start()
        await arena.fleet.replace(killed)

    taken = await arena.run(strike, every_s=0.3, drained_within_s=60)
    assert gone
    assert taken.repeats <= 2 * SLOTS


@pytest.mark.parametrize("killed", [False, True], ids=["same workers", "a new worker"])
async def test_redis_full(arena: Arena, killed: bool) -> None:
    """Producers are refused and wait; workers go on, and one that starts as well: what they finish makes room."""
    await arena.fleet.start(2)

    async def is_empty() -> bool:
        return await arena.redis.zcard(QUEUE) == 0

    before = (await arena.redis.config_get("maxmemory"))["maxmemory"]

    async def strike() -> None:
        arena.fleet.faults += 1
        used = (await arena.redis.info("memory"))["used_memory"]
        await arena.redis.config_set("maxmemory", used * 9 // 10)
        if killed and (member := arena.fleet.any()):
            await arena.fleet.kill(member)
            await arena.fleet.replace(member)
        await eventually(is_empty)
        await arena.redis.config_set("maxmemory", before)

    taken = await arena.run(strike, exact_tries=not killed)
    assert arena.fleet.faults
    assert taken.repeats <= (arena.fleet.faults * SLOTS if killed else 0)
