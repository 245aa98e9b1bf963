"""A worker process under test: ``python -m tests.faults.worker OPTIONS``, a JSON object as ``fleet.py`` writes it.

It connects as the project's workers do, by ``REDIS_…`` in its environment. What its tasks did they write down in the
ledger, a Redis that no fault reaches, so that runs are counted that left no result.
"""

from __future__ import annotations

import json
import sys
import time

OPTIONS = json.loads(sys.argv[1])
if OPTIONS["skew"]:
    # Before anything is imported, as `from time import time` copies what it finds.
    _true_time = time.time
    time.time = lambda: _true_time() + OPTIONS["skew"]

import asyncio  # noqa: E402
import contextlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
from collections.abc import Awaitable, Callable  # noqa: E402
from functools import wraps  # noqa: E402
from typing import Any  # noqa: E402

import arq.worker  # noqa: E402
import uvloop  # noqa: E402
from arq.worker import Retry, func  # noqa: E402
from redis.asyncio import Redis  # noqa: E402

from aegis_worker import Worker  # noqa: E402
from aegis_worker.project import current  # noqa: E402
from aegis_worker.redis.pool import create_pool  # noqa: E402
from tests.faults.load import HOPELESS_TRIES, KILLER_TRIES, QUEUE  # noqa: E402

Context = dict[Any, Any]
Task = Callable[..., Awaitable[Any]]


def recorded(task: Task) -> Task:
    """Enter each run in the ledger as it begins and when its code is through; one that is cut short has no end."""

    @wraps(task)
    async def run(ctx: Context, *args: Any) -> Any:
        ledger, key = ctx["ledger"], f"runs:{ctx['job_id']}"
        begun = {"pid": os.getpid(), "try": ctx["job_try"], "begun": time.monotonic()}
        number = await ledger.rpush(key, json.dumps(begun))
        try:
            return await task(ctx, *args)
        finally:
            if not isinstance(sys.exception(), asyncio.CancelledError):
                await ledger.rpush(key, json.dumps({"of": number, "ended": time.monotonic()}))

    return run


@recorded
async def work(ctx: Context, seconds: float) -> int:
    if seconds:
        await asyncio.sleep(seconds)
    return os.getpid()


@recorded
async def flaky(ctx: Context, tries: int, wait_s: float) -> int:
    if ctx["job_try"] < tries:
        raise Retry(defer=wait_s)
    return os.getpid()


@recorded
async def fails(ctx: Context) -> None:
    raise ValueError("the error of the task")


@recorded
async def hopeless(ctx: Context) -> None:
    raise Retry(defer=0)


@recorded
async def blocks(ctx: Context, seconds: float) -> int:
    """Block the loop in the first try."""
    if ctx["job_try"] == 1:
        time.sleep(seconds)  # noqa: ASYNC251 - what a task must not do
    return os.getpid()


@recorded
async def kills(ctx: Context) -> None:
    os._exit(OPTIONS["exit_code"])


@recorded
async def echo(ctx: Context, value: object) -> object:
    return value


FUNCTIONS = [
    *(func(task, name=task.__name__) for task in (work, flaky, fails, blocks, echo)),
    func(hopeless, name="hopeless", max_tries=HOPELESS_TRIES),
    func(kills, name="kills", max_tries=KILLER_TRIES),
]


async def on_startup(ctx: Context) -> None:
    ctx["ledger"] = Redis(port=OPTIONS["ledger"])
    print("starting", flush=True)
    if OPTIONS["raises"] == "startup":
        raise ValueError("the start")
    await asyncio.sleep(OPTIONS["startup"] or OPTIONS["hooks"])  # long enough for a signal to fall into it
    print("started", flush=True)


async def on_shutdown(ctx: Context) -> None:
    await asyncio.sleep(OPTIONS["hooks"])
    if "ledger" in ctx:
        await ctx["ledger"].aclose()
    print("shut down", flush=True)
    if OPTIONS["raises"]:
        raise RuntimeError("the end")


async def hook(ctx: Context) -> None:
    await asyncio.sleep(OPTIONS["hooks"])


def make() -> arq.worker.Worker:
    given: dict[str, Any] = {
        "queue_name": QUEUE,
        "redis_pool": create_pool(current().config, queue_name=QUEUE),
        "on_startup": on_startup,
        "on_shutdown": on_shutdown,
        "max_jobs": OPTIONS["slots"],
        "job_timeout": OPTIONS["timeout"],
        "max_tries": 100,  # what the chaos burns must not end a job
    }
    if OPTIONS["stock"]:
        return arq.worker.Worker(FUNCTIONS, poll_delay=0.1, **given)
    if OPTIONS["hooks"]:
        given |= {"on_job_start": hook, "on_job_end": hook, "after_job_end": hook}
    return Worker(
        FUNCTIONS,
        replica=OPTIONS["replica"],
        lease=OPTIONS["lease"],
        job_completion_wait=OPTIONS["drain"],
        blocked_log=1,
        blocked_exit=OPTIONS["blocked_exit"],
        health_check_interval=1,
        **given,
    )


async def serve() -> None:
    worker = make()
    print("armed", flush=True)  # from here on a signal is heard
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await worker.async_run()
    finally:
        await worker.close()
        print("closed", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=OPTIONS["log"], format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvloop.run(serve())
