"""Measure workers side by side, in turn, in one run: `make bench`.

Every system gets a server of its own with the project's redis.conf, one worker process, and jobs of a stock arq
producer. CPU is the system's and the user's time of worker and server, over the jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, time
from typing import Any

from arq.connections import ArqRedis
from arq.jobs import deserialize_result, serialize_job
from redis.exceptions import ConnectionError
from rich.console import Console
from rich.table import Table

from benchmarks.systems import QUEUE, SYSTEMS
from ops.local import server_binary

ROOT = Path(__file__).resolve().parents[1]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[ArqRedis, int]]:
    """A server on a free port, and a connection to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "users.acl").write_text("user default on nopass ~* &* +@all\n")
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "aclfile": folder / "users.acl", "maxmemory": "4gb"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([server_binary(), ROOT / "redis" / "redis.conf", *arguments], stdout=log, stderr=log)
    redis = ArqRedis(port=port)
    try:
        while True:
            with contextlib.suppress(ConnectionError):
                await redis.ping()
                break
            await asyncio.sleep(0.05)
        yield redis, port
    finally:
        process.terminate()
        process.wait()


@contextlib.asynccontextmanager
async def worker(name: str, port: int) -> AsyncIterator[int]:
    """A worker process that is ready; gives its process id."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.systems", name, str(port)], cwd=ROOT)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


async def redis_cpu_s(redis: ArqRedis) -> float:
    info = await redis.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


async def until_empty(redis: ArqRedis) -> None:
    while await redis.zcard(QUEUE):
        await asyncio.sleep(0.005)


async def warm(redis: ArqRedis) -> None:
    job = await redis.enqueue_job("noop", _queue_name=QUEUE)
    if job:
        await job.result(timeout=30, poll_delay=0.01)


async def drain(redis: ArqRedis, pid: int, jobs: int) -> dict[str, float]:
    """No-op jobs that fall due together, when all of them are queued."""
    now = int(time() * 1000)
    due = now + 2000 + jobs // 50
    for first in range(0, jobs, 1000):
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + 1000, jobs)):
                pipe.psetex(f"arq:job:{number}", 86_400_000, serialize_job("noop", (), {}, None, now))
                pipe.zadd(QUEUE, {str(number): due})
            await pipe.execute()
    await asyncio.sleep(max(0.0, due / 1000 - time()))
    worker_cpu, server_cpu, begun = cpu_s(pid), await redis_cpu_s(redis), perf_counter()
    await until_empty(redis)
    took = perf_counter() - begun
    return {
        "jobs/s": jobs / took,
        "worker µs/job": (cpu_s(pid) - worker_cpu) / jobs * 1e6,
        "Redis µs/job": (await redis_cpu_s(redis) - server_cpu) / jobs * 1e6,
    }


async def pick_up(redis: ArqRedis, samples: int) -> dict[str, float]:
    """Milliseconds from an enqueue to the task's first line, on an idle worker."""
    waits = []
    for _ in range(samples):
        await asyncio.sleep(random.uniform(0.01, 0.03))
        asked = time()
        job = await redis.enqueue_job("now", _queue_name=QUEUE)
        while (found := await redis.get(f"arq:result:{job.job_id}")) is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.002)
        waits.append((deserialize_result(found).result - asked) * 1000)
    waits.sort()
    return {"pick-up p50 ms": waits[len(waits) // 2], "p99 ms": waits[int(len(waits) * 0.99)]}


async def ten_slots(redis: ArqRedis) -> dict[str, float]:
    """Seconds for 40 jobs of 50 ms; with 10 slots, 0.2 s are the least."""
    due = datetime.now(UTC) + timedelta(seconds=1)
    for _ in range(40):
        await redis.enqueue_job("sleep", 0.05, _queue_name=QUEUE, _defer_until=due)
    await until_empty(redis)
    return {"40 × 50 ms, s": (datetime.now(UTC) - due).total_seconds()}


async def measure(name: str, jobs: int, samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with server(Path(folder)) as (redis, port), worker(name, port) as pid:
            await warm(redis)
            slow = SYSTEMS[name][1] == {}
            found = await drain(redis, pid, jobs // 50 if slow else jobs)
            found |= await pick_up(redis, samples // 5 if slow else samples)
            found |= await ten_slots(redis)
            await redis.aclose()
            return found


async def main(jobs: int, samples: int) -> None:
    console = Console(width=140)
    results: dict[str, dict[str, float]] = {}
    for name in SYSTEMS:
        console.print(f"measuring {name}", style="dim")
        results[name] = await measure(name, jobs, samples)
    first: dict[str, Any] = next(iter(results.values()))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("system")
    for title in (*first, "× jobs/s"):
        table.add_column(title, justify="right")
    for name, found in results.items():
        ratio = first["jobs/s"] / found["jobs/s"]
        figures = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in found.values()]
        table.add_row(name, *figures, f"{ratio:.1f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--jobs", type=int, default=50_000, help="no-op jobs to drain")
    parser.add_argument("--samples", type=int, default=200, help="idle pick-ups to time")
    options = parser.parse_args()
    asyncio.run(main(options.jobs, options.samples))
