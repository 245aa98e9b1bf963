"""Jobs whose cost is known: cpu, waiting, memory, failure. Each names in its result the replica that ran it."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import time
from tempfile import TemporaryFile
from typing import Any

from app.components.worker.tasks import files
from app.components.worker.tasks.system import peak_rss

MEGABYTE = 2**20


class LoadTestError(RuntimeError):
    """A failure that was asked for, or one that the load brought to light."""


async def light_cpu_task(ctx: dict[str, Any], rounds: int = 40_000) -> dict[str, Any]:
    """Hash for ``rounds`` rounds, about 20 ms of one CPU by default; return the digest's beginning and the seconds.

    The same rounds give the same digest. Raises ``ValueError`` for rounds out of bounds.
    """
    # The upper bound is a few seconds: C code cannot be stopped, and a drain waits for it.
    _check("rounds", rounds, 1, 5_000_000)
    started = time.perf_counter()
    # It releases the interpreter's lock, so that a thread is enough for the event loop to go on.
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"load", b"test", rounds)
    seconds = round(time.perf_counter() - started, 6)
    return {"digest": digest.hex()[:16], "seconds": seconds, "replica": ctx.get("replica")}


async def light_io_task(ctx: dict[str, Any], delay_s: float = 0.05, size: int = 16_384) -> dict[str, Any]:
    """Write and read back a file of ``size`` bytes, ask Redis once, and wait ``delay_s`` seconds as for a remote.

    Returns the bytes and the seconds. Raises ``LoadTestError`` where the file differs from what was written,
    ``ValueError`` for an argument out of bounds.
    """
    _check("delay_s", delay_s, 0, 300)
    _check("size", size, 0, 64 * MEGABYTE)
    started = time.perf_counter()
    await asyncio.to_thread(_write_and_read, size)
    await ctx["redis"].ping()
    await asyncio.sleep(delay_s)
    return {"bytes": size, "seconds": round(time.perf_counter() - started, 6), "replica": ctx.get("replica")}


def _write_and_read(size: int) -> None:
    written = os.urandom(size)
    with TemporaryFile(dir=files.tmp()) as file:  # it has no name: a killed process leaves none behind
        file.write(written)
        file.seek(0)
        if file.read() != written:
            raise LoadTestError(f"a file of {size} bytes was read back with other bytes")


async def light_memory_task(ctx: dict[str, Any], megabytes: int = 16, hold_s: float = 0.05) -> dict[str, Any]:
    """Take ``megabytes`` MiB of memory, hold them for ``hold_s`` seconds, and give them back to the system.

    Returns the process's peak of resident memory in bytes. Raises ``ValueError`` for an argument out of bounds.
    """
    _check("megabytes", megabytes, 1, 1024)
    _check("hold_s", hold_s, 0, 300)
    # A mapping of its own: what an allocator is given back, it may keep.
    with mmap.mmap(-1, megabytes * MEGABYTE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        await asyncio.to_thread(_fill, block)
        await asyncio.sleep(hold_s)
        return {"megabytes": megabytes, "peak_rss": peak_rss(), "replica": ctx.get("replica")}


def _fill(block: mmap.mmap) -> None:
    # Memory is taken when it is first written to. A step each megabyte lets the event loop in between.
    ones = b"\1" * MEGABYTE
    for start in range(0, len(block), MEGABYTE):
        block[start : start + MEGABYTE] = ones


async def failure_task(
    ctx: dict[str, Any], fail_tries: int = 0, message: str = "failed as it was asked to"
) -> dict[str, Any]:
    """Raise ``LoadTestError`` with ``message`` on each of the first ``fail_tries`` tries, with 0 on every try.

    Returns the number of the try that did not. Raises ``ValueError`` for an argument out of bounds.
    """
    _check("fail_tries", fail_tries, 0, 100)
    _check("message's length", len(message), 0, 1000)
    job_try: int = ctx["job_try"]
    if fail_tries == 0 or job_try <= fail_tries:
        raise LoadTestError(message)
    return {"job_try": job_try, "replica": ctx.get("replica")}


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, it must be from {least} to {most}")
