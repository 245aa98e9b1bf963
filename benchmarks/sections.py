"""What is measured of this worker, and of arq at its best: how it bears depth, replicas, payloads and idleness."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

from arq.jobs import serialize_job

from aegis_worker.queue import keys
from benchmarks.measures import drain
from benchmarks.processes import Process, Server, producer, server, until, workers
from benchmarks.systems import BEST_ARQ, OURS, QUEUE, System

Rows = AsyncIterator[tuple[str, dict[str, float]]]

DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
FILL_AT_A_TIME = 5_000
BYTES_AT_A_TIME = 8 << 20
HOUR_MS = 3_600_000
IDLE_S = 10.0
SETTLED_S = 0.01  #: of CPU in a second, at most
JOBS_PER_S = 100

#: KEYS[1] queue; ARGV: payload, number of the first job, number of the last, due time in ms
FILL = """
local members = {}
for number = ARGV[2], ARGV[3] do
  redis.call('SET', 'arq:job:' .. number, ARGV[1], 'PX', 86400000)
  members[#members + 1] = ARGV[4]
  members[#members + 1] = number
  if #members == 1000 or number == tonumber(ARGV[3]) then
    redis.call('ZADD', KEYS[1], unpack(members))
    members = {}
  end
end
"""


async def fill(server: Server, jobs: int, *, payload: bytes = b"", due_ms: int = 0) -> None:
    """Put so many no-op jobs into the queue, as a stock producer would have, but fast."""
    args = (payload,) if payload else ()
    job = serialize_job("noop", args, {}, None, int(time.time() * 1000))
    script = server.redis.register_script(FILL)
    step = max(1, min(FILL_AT_A_TIME, BYTES_AT_A_TIME // len(job)))
    for first in range(1, jobs + 1, step):
        last = min(first + step - 1, jobs)
        await script([QUEUE], [job, first, last, due_ms or int(time.time() * 1000)])


async def depth(scale: float) -> Rows:
    """The rate of a drain with so many jobs more behind, at last while another worker runs a thousand."""
    alone = [(system, jobs, n, 0) for system, jobs in ((OURS, 20_000), (BEST_ARQ, 5_000)) for n in DEPTHS]
    for system, jobs, behind, busy in (*alone, (OURS, 20_000, DEPTHS[-1], 1_000)):
        wanted, queued = int(jobs * scale), int(behind * scale)
        async with server() as its_server:
            with workers(its_server, system, count=min(busy, 1), slots=busy) as others:
                if busy:
                    await _occupy(its_server, system, others, busy)
                enqueued = queued + wanted + wanted // 10
                await fill(its_server, enqueued)
                with workers(its_server, system) as running:
                    drained = await drain(
                        its_server, system, running, enqueued + busy, first=wanted // 10, last=wanted + wanted // 10
                    )
        yield f"{system.title}, {queued:,} behind{f', {busy:,} run' if busy else ''}", drained.figures


async def _occupy(server: Server, system: System, others: list[Process], jobs: int) -> None:
    """Have a worker run so many jobs for as long as it is there."""

    async def reached() -> bool:
        return bool(await server.redis.zcard(keys.leases(QUEUE)) == jobs)

    with producer(server, system) as producing:
        await producing.ask("sleeps", jobs, HOUR_MS / 1000, within_s=60)
    await until(reached, others, within_s=30, every_s=0.1)


async def replicas(scale: float) -> Rows:
    """One queue, drained by several processes; CPU of all workers together."""
    for system, jobs in ((OURS, 60_000), (BEST_ARQ, 10_000)):
        for count in (1, 2, 4):
            wanted = int(jobs * scale)
            async with server() as its_server:
                with workers(its_server, system, count=count) as running:
                    await _settled(running)
                    due_ms = int(time.time() * 1000) + 3_000  # all workers begin together
                    await fill(its_server, wanted, due_ms=due_ms)
                    drained = await drain(its_server, system, running, wanted, first=wanted // 20, last=wanted)
            yield f"{system.title}, × {count}", drained.figures


async def payload(scale: float) -> Rows:
    """Jobs with an argument of so many bytes; arq keeps the arguments in the result, too."""
    for system, share in ((OURS, 1.0), (BEST_ARQ, 0.2)):
        for size, jobs in ((0, 30_000), (1_000, 30_000), (10_000, 15_000), (100_000, 3_000)):
            wanted = int(jobs * share * scale)
            async with server() as its_server:
                await fill(its_server, wanted, payload=bytes(size))
                with workers(its_server, system) as running:
                    drained = await drain(its_server, system, running, wanted, first=wanted // 20, last=wanted)
            yield f"{system.title}, {size:,} bytes", drained.figures


async def deferred(scale: float) -> Rows:
    """An idle worker, with and without jobs that are due in an hour."""
    for system in (OURS, BEST_ARQ):
        for jobs in (0, 1_000):
            async with server() as its_server:
                await fill(its_server, jobs, due_ms=int(time.time() * 1000) + HOUR_MS)
                with workers(its_server, system) as running:
                    await _settled(running)
                    yield f"{system.title}, {jobs:,} deferred", await _idle(its_server, running, IDLE_S * scale)


async def idle(scale: float) -> Rows:
    """Replicas with hardly anything to do: CPU of all together, without jobs and with a hundred a second."""
    for system in (OURS, BEST_ARQ):
        for count in (1, 20):
            async with server() as its_server:
                with workers(its_server, system, count=count) as running:
                    await _settled(running)
                    idle = await _idle(its_server, running, IDLE_S * scale)
                    yield f"{system.title}, × {count}", idle | await _few_jobs(its_server, system, running, scale)


async def _settled(running: list[Process]) -> None:
    """Wait until the workers are up, and idle."""
    used = [-math.inf for _ in running]

    async def reached() -> bool:
        nonlocal used
        before, used = used, [worker.cpu_s for worker in running]
        return all(after - since < SETTLED_S for since, after in zip(before, used, strict=True))

    await until(reached, running, within_s=60, every_s=1)


async def _idle(server: Server, running: list[Process], seconds: float) -> dict[str, float]:
    before = _cpu_s(server, running)
    await asyncio.sleep(seconds)
    used = [(after - since) / seconds * 1000 for since, after in zip(before, _cpu_s(server, running), strict=True)]
    return {"workers idle, ms/s": used[0], "Redis idle, ms/s": used[1]}


async def _few_jobs(server: Server, system: System, running: list[Process], scale: float) -> dict[str, float]:
    jobs = int(JOBS_PER_S * IDLE_S * scale)
    before, begun = _cpu_s(server, running), time.perf_counter()
    for number in range(jobs):
        await server.redis.enqueue_job("noop")
        await asyncio.sleep(begun + (number + 1) / JOBS_PER_S - time.perf_counter())

    async def reached() -> bool:
        return await server.done(system, jobs) >= jobs

    await until(reached, running, within_s=60, every_s=0.01)
    used = [(after - since) / jobs * 1e6 for since, after in zip(before, _cpu_s(server, running), strict=True)]
    return {"workers µs/job": used[0], "Redis µs/job": used[1]}


def _cpu_s(server: Server, running: list[Process]) -> tuple[float, float]:
    return sum(worker.cpu_s for worker in running), server.process.cpu_s


SECTIONS: dict[str, Callable[[float], Rows]] = {
    "depth": depth,
    "replicas": replicas,
    "payload": payload,
    "deferred": deferred,
    "idle": idle,
}
