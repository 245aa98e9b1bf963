"""The jobs, the same for every system, as functions that block and as coroutines."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

record = Path("/dev/null")  #: gets a line for each ``now``
_runs = itertools.count()


def noop() -> None:
    next(_runs)  # atomic, so that threads lose no count


def now(asked: float) -> None:
    """Record how long ago it was asked for, and how many jobs this process ran before."""
    waited = time.time() - asked
    with record.open("a") as file:
        file.write(f"{waited} {next(_runs)}\n")


def sleep(seconds: float) -> None:
    time.sleep(seconds)


async def async_noop(*payload: bytes) -> None:
    noop()


async def async_now(asked: float) -> None:
    now(asked)


async def async_sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


BLOCKING: dict[str, Callable[..., None]] = {"noop": noop, "now": now, "sleep": sleep}
ASYNC: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "noop": async_noop,
    "now": async_now,
    "sleep": async_sleep,
}


def with_context(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """The coroutine for systems that pass a context first."""

    async def task(ctx: Any, *args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return task
