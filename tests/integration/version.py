"""A worker process of some version of an app: ``python -m tests.integration.version PORT REPLICA FUNCTION …``.

It knows the functions of these names, each of which writes down that it ran. The password is on standard input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from arq.connections import RedisSettings
from arq.worker import func

from aegis_worker import Worker
from tests.integration.conftest import QUEUE


async def work(ctx: dict[Any, Any], seconds: float = 0) -> str:
    await asyncio.sleep(seconds)
    await ctx["redis"].rpush(f"runs:{ctx['job_id']}", ctx["replica"])
    return str(ctx["replica"])


async def serve(port: int, replica: str, *functions: str) -> None:
    worker = Worker(
        [func(work, name=name) for name in functions],
        queue_name=QUEUE,
        redis_settings=RedisSettings(port=port, password=sys.stdin.readline().strip()),
        replica=replica,
        job_completion_wait=5,
    )
    try:
        await worker.async_run()
    finally:
        await worker.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), *sys.argv[2:]))
