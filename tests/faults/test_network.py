"""A network between workers and Redis that is slow, falls silent or cuts connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from tests.faults.fleet import LEASE_S, SLOTS, Member
from tests.faults.harness import Arena
from tests.faults.load import SECONDS
from tests.faults.proxy import Proxy

COMES_BACK_S = 3  #: a request that is waited for in vain, and the wait until the next
LONG_LEASE_S = 5  #: one that is renewed in time though some of the renewals are cut off


@pytest.fixture
async def proxied(arena: Arena, request: pytest.FixtureRequest) -> AsyncIterator[list[tuple[Member, Proxy]]]:
    """Three workers, each behind a proxy of its own, and one that has none; the parameter is their lease."""
    proxies = [Proxy(arena.server.port) for _ in range(3)]
    for proxy in proxies:
        await proxy.start()
    members = [await arena.fleet.spawn(port=proxy.port, lease=request.param) for proxy in proxies]
    await arena.fleet.start(1, lease=request.param)
    yield list(zip(members, proxies, strict=True))
    for proxy in proxies:
        await proxy.stop()


@pytest.mark.parametrize("proxied", [LEASE_S], indirect=True)
async def test_latency(arena: Arena, proxied: list[tuple[Member, Proxy]]) -> None:
    async def strike() -> None:
        arena.fleet.faults += 1
        for _, proxy in proxied:
            proxy.latency_s = arena.rng.choice([0, 0.001, 0.02, 0.1])

    taken = await arena.run(strike, exact_tries=True)
    assert arena.fleet.faults
    assert taken.repeats == 0


@pytest.mark.parametrize("proxied", [LONG_LEASE_S], indirect=True)
async def test_connections_cut_in_the_middle(arena: Arena, proxied: list[tuple[Member, Proxy]]) -> None:
    """A request cut short is none. One whose reply was cut has been carried out, and to send it again is harmless."""

    async def strike() -> None:
        arena.fleet.faults += 1
        _, proxy = arena.rng.choice(proxied)
        proxy.cuts[arena.rng.choice(["request", "reply"])] = arena.rng.choice([1, 2])

    taken = await arena.run(strike, every_s=0.15)
    assert sum(proxy.cut for _, proxy in proxied)
    assert taken.repeats == 0


@pytest.mark.parametrize("proxied", [LEASE_S], indirect=True)
async def test_a_network_that_falls_silent(arena: Arena, proxied: list[tuple[Member, Proxy]]) -> None:
    """For longer than a lease; what was on its way arrives too late, or never: connections are half open."""
    silent: set[int] = set()
    back: dict[int, float] = {}  # since when each may serve again

    async def fall_silent(member: Member, proxy: Proxy) -> None:
        begun = monotonic()
        proxy.freeze()
        await asyncio.sleep(LEASE_S * arena.rng.uniform(1.3, 1.7))
        proxy.thaw(old=arena.rng.random() < 0.5)
        back[member.pid] = monotonic()
        arena.fleet.disturb(member, begun, monotonic() + COMES_BACK_S)
        silent.discard(member.pid)

    async def strike() -> None:
        member, proxy = arena.rng.choice(proxied)
        if member.pid not in silent:
            silent.add(member.pid)
            arena.fleet.faults += 1
            arena.aside(fall_silent(member, proxy))

    begun = monotonic()
    taken = await arena.run(strike)
    assert arena.fleet.faults
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS
    for pid, since in back.items():
        if since < begun + SECONDS - COMES_BACK_S:  # while there were jobs to come
            assert taken.latest[pid] > since, f"worker {pid} did not come back"
