"""A project of somebody's who knows nothing of this repository: stock arq, with what such projects have.

The tests run it as it stands, and with the line of `run_worker` changed to the library's. It notes what happens in a
list in Redis, `log`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import timedelta
from typing import Any

from arq import Retry, cron, func
from arq.connections import RedisSettings

from arq import Worker, run_worker  # isort: skip

Ctx = dict[str, Any]


class Basket:
    """Of a class of its own, as pickles carry it; it is neither a dataclass nor registered anywhere."""

    def __init__(self, *prices: int) -> None:
        self.prices = prices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basket) and self.prices == other.prices


class SoldOut(Exception):
    pass


async def startup(ctx: Ctx) -> None:
    ctx["discount"] = 1
    await ctx["redis"].rpush("log", "startup")


async def shutdown(ctx: Ctx) -> None:
    await ctx["redis"].rpush("log", f"shutdown with discount {ctx['discount']}")


async def on_job_start(ctx: Ctx) -> None:
    ctx["greeting"] = "hello"  # the job's own ctx


async def on_job_end(ctx: Ctx) -> None:
    await ctx["redis"].rpush("log", f"end of {ctx['job_id']}")


async def after_job_end(ctx: Ctx) -> None:
    await ctx["redis"].rpush("log", f"after {ctx['job_id']}")


async def add(ctx: Ctx, one: int, *, other: int) -> int:
    return one + other - ctx["discount"]


async def double(ctx: Ctx, basket: Basket) -> Basket:
    return Basket(*(2 * price for price in basket.prices))


async def what_ctx_has(ctx: Ctx) -> list[str]:
    return sorted(ctx.keys() - {"replica"})  # which the library adds


async def busy_at_first(ctx: Ctx) -> int:
    if ctx["job_try"] < 3:
        raise Retry(defer=timedelta(milliseconds=100))
    return int(ctx["job_try"])


async def always_busy(ctx: Ctx) -> None:
    raise Retry


async def fails(ctx: Ctx) -> None:
    await ctx["redis"].rpush("log", f"try {ctx['job_try']} of fails")
    raise SoldOut("no tea")


async def sleeps(ctx: Ctx, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def enqueues(ctx: Ctx) -> str:
    job = await ctx["redis"].enqueue_job("add", 20, other=22, _job_id="of a job")
    return str(job.job_id)


async def tick(ctx: Ctx) -> None:
    await ctx["redis"].rpush("log", "tick")


class WorkerSettings:
    functions = [  # noqa: RUF012
        add,
        double,
        what_ctx_has,
        busy_at_first,
        func(always_busy, name="busy", max_tries=2),
        fails,
        func(sleeps, timeout=0.3),
        func(sleeps, name="sleeps_long", keep_result=60),
        func(add, name="forgotten", keep_result=0),
        enqueues,
    ]
    cron_jobs = [cron(tick, second=set(range(60)), run_at_startup=True)]  # noqa: RUF012
    redis_settings = RedisSettings(
        host="127.0.0.1", port=int(os.environ["REDIS_PORT"]), password=os.environ["REDIS_PASSWORD"]
    )
    on_startup = startup
    on_shutdown = shutdown
    on_job_start = on_job_start
    on_job_end = on_job_end
    after_job_end = after_job_end
    allow_abort_jobs = True
    max_jobs = 20
    keep_result = timedelta(minutes=10)
    poll_delay = 0.1
    not_an_option = "arq passes over it"


def main(how: str) -> None:
    """Serve until a signal, with a class or with arguments."""
    logging.basicConfig(level=logging.INFO)
    if how == "class":
        run_worker(WorkerSettings, health_check_interval=1)
    else:
        Worker(
            functions=WorkerSettings.functions,
            cron_jobs=WorkerSettings.cron_jobs,
            redis_settings=WorkerSettings.redis_settings,
            on_startup=startup,
            on_shutdown=shutdown,
            on_job_start=on_job_start,
            on_job_end=on_job_end,
            after_job_end=after_job_end,
            allow_abort_jobs=True,
            max_jobs=20,
            poll_delay=0.1,
        ).run()
