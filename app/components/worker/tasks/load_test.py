"""Tasks with a known cost: CPU, waiting, memory, failure. Their results name the replica that ran them."""

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
    """A failure that was requested, or a failure that the load has shown."""


async def light_cpu_task(ctx: dict[str, Any], rounds: int = 40_000) -> dict[str, Any]:
    """Hash for ``rounds`` rounds. By default this takes about 20 ms of one CPU.

    Returns the beginning of the digest, and the seconds. The same number of rounds gives the same digest. Raises
    ``ValueError`` if ``rounds`` is out of bounds.
    """
    # The largest number takes a few seconds, because C code cannot be cancelled, and a drain waits for it.
    _check("rounds", rounds, 1, 5_000_000)
    started = time.perf_counter()
    # The function releases the interpreter's lock, so a thread is enough to keep the event loop free.
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"load", b"test", rounds)
    seconds = round(time.perf_counter() - started, 6)
    return {"digest": digest.hex()[:16], "seconds": seconds, "replica": ctx.get("replica")}


async def light_io_task(ctx: dict[str, Any], delay_s: float = 0.05, size: int = 16_384) -> dict[str, Any]:
    """Write and read a file of ``size`` bytes, call Redis once, and wait ``delay_s`` seconds as for a remote service.

    Returns the bytes and the seconds. Raises ``LoadTestError`` if the file has other bytes than were written, and
    ``ValueError`` if an argument is out of bounds.
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
    with TemporaryFile(dir=files.tmp()) as file:  # without a name: nothing is left if the process is killed
        file.write(written)
        file.seek(0)
        if file.read() != written:
            raise LoadTestError(f"a file of {size} bytes contains other bytes than were written")


async def light_memory_task(ctx: dict[str, Any], megabytes: int = 16, hold_s: float = 0.05) -> dict[str, Any]:
    """Take ``megabytes`` MiB of memory, hold them for ``hold_s`` seconds, and give them back to the system.

    Returns the peak of the process's resident memory in bytes. Raises ``ValueError`` if an argument is out of bounds.
    """
    _check("megabytes", megabytes, 1, 1024)
    _check("hold_s", hold_s, 0, 300)
    # A mapping, because an allocator may keep the memory that it gets back.
    with mmap.mmap(-1, megabytes * MEGABYTE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        await asyncio.to_thread(_fill, block)
        await asyncio.sleep(hold_s)
        return {"megabytes": megabytes, "peak_rss": peak_rss(), "replica": ctx.get("replica")}


def _fill(block: mmap.mmap) -> None:
    # The system gives memory when it is written for the first time. After each megabyte the event loop can run.
    ones = b"\1" * MEGABYTE
    for start in range(0, len(block), MEGABYTE):
        block[start : start + MEGABYTE] = ones


async def failure_task(
    ctx: dict[str, Any], fail_tries: int = 0, message: str = "failed as requested"
) -> dict[str, Any]:
    """Raise ``LoadTestError`` with ``message`` in each of the first ``fail_tries`` tries, or in every try if it is 0.

    Returns the number of the try that succeeded. Raises ``ValueError`` if an argument is out of bounds.
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
