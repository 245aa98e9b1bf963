"""The tasks that ``my-app load-test`` sends, with the names and arguments that it knows, and little behind them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from tempfile import TemporaryFile
from typing import Any

from tests.project.settings import settings


class LoadTestError(RuntimeError):
    """A failure that was asked for."""


async def light_cpu_task(ctx: dict[str, Any], rounds: int = 40_000) -> dict[str, Any]:
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"load", b"test", rounds)
    return {"digest": digest.hex()[:16], "replica": ctx["replica"]}


async def light_io_task(ctx: dict[str, Any], delay_s: float = 0.05, size: int = 1000) -> dict[str, Any]:
    if not 0 <= delay_s <= 300:
        raise ValueError(f"delay_s is {delay_s}, it must be from 0 to 300")
    started = time.perf_counter()
    folder = settings.WORKER_DATA_DIR / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(size))
    await asyncio.sleep(delay_s)
    return {"bytes": size, "seconds": round(time.perf_counter() - started, 2), "replica": ctx["replica"]}


async def light_memory_task(ctx: dict[str, Any], megabytes: int = 16, hold_s: float = 0.05) -> dict[str, Any]:
    block = bytes(megabytes << 20)
    await asyncio.sleep(hold_s)
    return {"megabytes": len(block) >> 20, "replica": ctx["replica"]}


async def failure_task(
    ctx: dict[str, Any], fail_tries: int = 0, message: str = "failed as it was asked to"
) -> dict[str, Any]:
    if fail_tries == 0 or ctx["job_try"] <= fail_tries:
        raise LoadTestError(message)
    return {"job_try": ctx["job_try"], "replica": ctx["replica"]}
