"""What is measured of every system, in the same way."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.processes import Failed, Process, Server, producer, server, until, workers
from benchmarks.systems import System

DONE_WITHIN_S = 180.0
TEN_SLOTS = 10
SLEEPS, SLEEP_S = 40, 0.05
WARM_UP_SHARE = 20  #: one in so many jobs is done before a drain is measured
WARM_UPS = 10  #: pick-ups


@dataclass
class Drained:
    """What a part of a drain took."""

    jobs: float
    seconds: float
    workers_cpu_s: float
    server_cpu_s: float

    @property
    def figures(self) -> dict[str, float]:
        return {
            "jobs/s": self.jobs / self.seconds,
            "worker µs/job": self.workers_cpu_s / self.jobs * 1e6,
            "Redis µs/job": self.server_cpu_s / self.jobs * 1e6,
        }


async def drain(
    server: Server, system: System, running: list[Process], enqueued: int, *, first: int, last: int
) -> Drained:
    """Measure from when ``first`` jobs are done until ``last`` are, so that no worker's start is counted."""
    done = 0

    async def reached(wanted: int) -> bool:
        nonlocal done
        done = await server.done(system, enqueued)
        return done >= wanted

    async def readings() -> tuple[float, ...]:
        return done, time.perf_counter(), sum(worker.cpu_s for worker in running), server.process.cpu_s

    await until(lambda: reached(first), running, within_s=DONE_WITHIN_S, every_s=0.01)
    begin = await readings()
    if done >= last:
        raise Failed(f"too few jobs to measure: {done} of {enqueued} were done at the first look")
    await until(lambda: reached(last), running, within_s=DONE_WITHIN_S, every_s=0.01)
    end = await readings()
    return Drained(*(after - before for before, after in zip(begin, end, strict=True)))


async def measure(system: System, scale: float) -> dict[str, float]:
    """All figures of one system."""
    return await _measure_drain(system, scale) | await _measure_idle(system, scale)


async def _measure_drain(system: System, scale: float) -> dict[str, float]:
    jobs = max(100, int(system.jobs * scale))
    async with server() as its_server:
        with producer(its_server, system) as asked:
            enqueued_s = await asked.ask("noops", jobs, within_s=DONE_WITHIN_S)
            with workers(its_server, system) as running:
                drained = await drain(its_server, system, running, jobs, first=jobs // WARM_UP_SHARE, last=jobs)
                ((_, ran),) = await asked.ask("pick-ups", 1, system.longest_pause_s, within_s=DONE_WITHIN_S)
            await _check(its_server, system, jobs, ran=int(ran))
    return drained.figures | {"enqueue/s": jobs / enqueued_s, "ran twice": ran - jobs}


async def _measure_idle(system: System, scale: float) -> dict[str, float]:
    """What an idle worker does with a job, and with forty; on another server, as that of the drain holds the more the
    quicker the system is.
    """
    samples = max(10, int(system.pick_ups * scale))
    async with server() as its_server:
        with producer(its_server, system) as asked:
            with workers(its_server, system):
                await asked.ask("pick-ups", WARM_UPS, system.longest_pause_s, within_s=DONE_WITHIN_S)
                pick_ups = await asked.ask("pick-ups", samples, system.longest_pause_s, within_s=DONE_WITHIN_S)
            waits = sorted(wait * 1000 for wait, _ in pick_ups)
            figures = {"pick-up p50 ms": waits[samples // 2], "p99 ms": waits[int(samples * 0.99)]}
            if not system.one_at_a_time:
                with workers(its_server, system, slots=TEN_SLOTS) as running:
                    enqueued = WARM_UPS + samples + 1
                    await asked.ask("noops", 1, within_s=DONE_WITHIN_S)  # until the worker is there
                    await _all_done(its_server, system, running, enqueued)
                    begun = await asked.ask("sleeps", SLEEPS, SLEEP_S, within_s=DONE_WITHIN_S)
                    await _all_done(its_server, system, running, enqueued + SLEEPS)
                    figures["40 × 50 ms, s"] = time.time() - begun
    return figures


async def _all_done(server: Server, system: System, running: list[Process], enqueued: int) -> None:
    async def reached() -> bool:
        return await server.done(system, enqueued) >= enqueued

    await until(reached, running, within_s=DONE_WITHIN_S, every_s=0.002)


async def _check(server: Server, system: System, jobs: int, *, ran: int) -> None:
    """Raise ``Failed`` unless each job ran, and its result is kept."""
    if ran < jobs:
        raise Failed(f"{ran} jobs ran, of {jobs}")
    stored = await server.stored(system)
    if stored < jobs:
        raise Failed(f"{stored} results are kept, of {jobs}")
