"""Jobs that harm the worker they run in, and what nobody should have put into Redis."""

from __future__ import annotations

from arq.jobs import serialize_job

from aegis_worker.queue import keys
from aegis_worker.worker.keeper import BLOCKED_EXIT_CODE
from tests.faults.fleet import LEASE_S, SLOTS
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
        await arena.add(f"blocks-{blocked}", Job("blocks", (LEASE_S * arena.rng.uniform(1.1, 1.3),)))

    taken = await arena.run(strike, every_s=0.7)
    assert blocked
    assert taken.repeats == 0


async def test_loops_blocked_for_too_long(arena: Arena) -> None:
    """Their process ends, and what it had runs elsewhere."""
    blocked_exit = 1
    await arena.fleet.start(3, blocked_exit=blocked_exit)
    arena.watch(arena.fleet.replace_ended(BLOCKED_EXIT_CODE, since_s=blocked_exit + 1))
    blocked = 0

    async def strike() -> None:
        nonlocal blocked
        blocked += 1
        await arena.add(f"blocks-{blocked}", Job("blocks", (60,), tries=2))

    taken = await arena.run(strike, every_s=0.7)
    assert 0 < arena.fleet.faults <= blocked
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_jobs_that_kill_their_process(arena: Arena) -> None:
    """Their tries are bounded; the jobs beside them run again."""
    code, killers = 9, [f"kills-{n}" for n in range(3)]
    await arena.fleet.start(3, exit_code=code, lease=1.5)
    arena.watch(arena.fleet.replace_ended(code, since_s=0))
    arena.jobs |= {killer: Job("kills", succeeds=False, tries=KILLER_TRIES) for killer in killers}

    taken = await arena.run()
    assert arena.fleet.faults
    assert taken.repeats <= arena.fleet.faults * 2 * SLOTS


async def test_what_cannot_be_run(arena: Arena) -> None:
    """Payloads that cannot be read, and keys of a type that arq never wrote: no other job is the worse for them."""
    whole = serialize_job("work", (0,), {}, None, 0)
    payloads = {
        "empty": b"",
        "cut short": whole[:-3],
        "noise": arena.rng.randbytes(500),
        "huge noise": arena.rng.randbytes(HUGE),
        "unknown": serialize_job("nothing", (1,), {"x": 2}, None, 0),
        "retry": whole,
        "result": whole,
    }
    for job_id, payload in payloads.items():
        await arena.redis.set(keys.JOB + job_id, payload)
    for key in (keys.JOB + "list", keys.RETRY + "retry", keys.RESULT + "result"):
        await arena.redis.rpush(key, "not a string")
    for job_id in (*payloads, "expired", "list"):
        await arena.redis.zadd(QUEUE, {job_id: 0})
        arena.put[job_id] = Job("work", succeeds=job_id in ("retry", "result"))
    arena.jobs["huge"] = Job("echo", (arena.rng.randbytes(HUGE),))
    await arena.fleet.start(2)

    taken = await arena.run(exact_tries=True)
    assert taken.repeats == 0
