"""What is measured: each system is a worker process of one queue, `python -m benchmarks.systems NAME PORT`.

Each has its best honest settings: results are kept, and jobs survive a crash of the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any

import arq.worker
import uvloop
from arq.connections import RedisSettings
from arq.worker import func

from app.components.worker.runtime import Worker

QUEUE = "arq:queue:bench"


async def noop(ctx: dict[Any, Any]) -> None:
    pass


async def now(ctx: dict[Any, Any]) -> float:
    return time.time()


async def sleep(ctx: dict[Any, Any], seconds: float) -> None:
    await asyncio.sleep(seconds)


#: name: the worker's class, its options, and whether it runs on uvloop
SYSTEMS: dict[str, tuple[type[arq.worker.Worker], dict[str, Any], bool]] = {
    "this worker, 500 slots": (Worker, {"max_jobs": 500}, True),
    "this worker, 10 slots": (Worker, {"max_jobs": 10}, True),
    "arq 0.28, 500 slots, uvloop": (arq.worker.Worker, {"max_jobs": 500}, True),
    "arq 0.28, as it comes": (arq.worker.Worker, {}, False),
}


def main(name: str, port: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    worker_class, options, fast_loop = SYSTEMS[name]

    async def work() -> None:
        functions = [func(noop, name="noop"), func(now, name="now"), func(sleep, name="sleep")]
        await worker_class(
            functions=functions, queue_name=QUEUE, redis_settings=RedisSettings(port=int(port)), **options
        ).async_run()

    with contextlib.suppress(asyncio.CancelledError):  # stock arq's way to end
        (uvloop.run if fast_loop else asyncio.run)(work())


if __name__ == "__main__":
    main(*sys.argv[1:])
