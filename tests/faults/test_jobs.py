"""Jobs that harm the worker they run in, and what nobody should have put into Redis."""

from __future__ import annotations

import asyncio
import os
from time import monotonic

import pytest
from arq.jobs import serialize_job

from app.components.worker.runtime import keys
from app.components.worker.runtime.keeper import BLOCKED_EXIT_CODE
from tests.faults.fleet import LEASE_S
from tests.faults.harness import Arena
from tests.faults.load import KILLER_TRIES, QUEUE, Job

HUGE = 5_000_000


async def test_blocked_loops(arena: Arena) -> None:
    """For longer than their lease, which a thread renews: nothing runs twice."""
    await arena.fleet.start(3)
    blocked = 0

    async def strike() -> None:
        nonlocal blocked
        blocked += 1
        await arena.add(f"blocks-{blocked}", Job("blocks", (LEASE_S * arena.rng.uniform(1.2, 1.5),)))

    taken = await arena.run(strike, every_s=1, exact_tries=True)
    assert blocked
    assert taken.repeats == 0


async def test_loops_blocked_for_too_long(arena: Arena) -> None:
    """Their process ends, and what it had runs elsewhere."""
    blocked_exit = 1.5
    await arena.fleet.start(3, blocked_exit=blocked_exit)
    blocked, ended = 0, 0

    async def strike() -> None:
        nonlocal blocked
        blocked += 1
        await arena.add(f"blocks-{blocked}", Job("blocks", (60,), tries=2))

    async def replace() -> None:
        nonlocal ended
        while ended < blocked or not blocked:
            for member in arena.fleet.ended(BLOCKED_EXIT_CODE):
                ended += 1
                arena.fleet.disturb(member, monotonic() - blocked_exit - 2)
                await arena.fleet.replace(member)
            await asyncio.sleep(0.02)

    arena.aside(replace())
    await arena.run(strike, every_s=1.5)
    assert ended == blocked


async def test_jobs_that_kill_their_process(arena: Arena) -> None:
    """Their tries are bounded; the jobs beside them run again."""
    code, killers, ended = 9, 2, 0
    await arena.fleet.start(3, exit_code=code)
    for n in range(killers):
        arena.jobs[f"kills-{n}"] = Job("kills", succeeds=False, tries=KILLER_TRIES)

    async def replace() -> None:
        nonlocal ended
        while ended < killers * KILLER_TRIES:
            for member in arena.fleet.ended(code):
                ended += 1
                arena.fleet.disturb(member, monotonic() - 1)
                await arena.fleet.replace(member)
            await asyncio.sleep(0.02)

    arena.aside(replace())
    await arena.run()
    assert [await arena.ledger.redis.llen(f"runs:kills-{n}") for n in range(killers)] == [KILLER_TRIES] * killers


async def test_payloads_that_cannot_be_run(arena: Arena) -> None:
    """Each fails and leaves a letter, and no other job is the worse for it."""
    whole = serialize_job("work", (0,), {}, None, 0)
    bad = {"empty": b"", "cut": whole[:-3], "noise": os.urandom(500), "huge noise": os.urandom(HUGE)}
    for name, payload in bad.items():
        await arena.redis.set(keys.JOB + name, payload)
    await arena.redis.set(keys.JOB + "unknown", serialize_job("nothing", (1,), {"x": 2}, None, 0))
    for name in (*bad, "unknown", "missing"):
        await arena.redis.zadd(QUEUE, {name: 0})
        arena.jobs[name] = Job("none", succeeds=False)
    arena.put.update((*bad, "unknown", "missing"))
    arena.jobs["huge"] = Job("echo", (os.urandom(HUGE),))
    await arena.fleet.start(3)
    await arena.run(exact_tries=False)


@pytest.mark.parametrize("prefix", [keys.JOB, keys.RETRY, keys.RESULT])
async def test_keys_of_a_wrong_type(arena: Arena, prefix: str) -> None:
    await arena.redis.rpush(prefix + "poison", 1)
    if prefix != keys.JOB:
        await arena.redis.set(keys.JOB + "poison", serialize_job("work", (0,), {}, None, 0))
    await arena.redis.zadd(QUEUE, {"poison": 0})
    arena.jobs["poison"] = Job("work", succeeds=prefix != keys.JOB)
    arena.put.add("poison")
    await arena.fleet.start(3)
    await arena.run()
