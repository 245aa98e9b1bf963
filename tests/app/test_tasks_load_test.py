"""Jobs of a known cost: they cost what they say, and the event loop nothing."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.components.worker.tasks.load_test import (
    LoadTestError,
    failure_task,
    light_cpu_task,
    light_io_task,
    light_memory_task,
)
from app.core.config import settings
from tests.conftest import free_port

CTX: dict[str, Any] = {"replica": "r1", "job_try": 1}
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "WORKER_DATA_DIR", tmp_path)


def resident() -> int:
    """Bytes of memory that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


async def longest_wait(work: asyncio.Task[Any]) -> float:
    """The longest time that the event loop kept a ticker from its turn while ``work`` ran."""
    worst = 0.0
    while not work.done():
        asked = perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, perf_counter() - asked)
    return worst


async def test_cpu_work_leaves_the_loop_alone() -> None:
    work = asyncio.create_task(light_cpu_task(CTX, rounds=1_000_000))
    worst = await longest_wait(work)
    assert work.result()["seconds"] > 0.1
    assert worst < work.result()["seconds"] / 2
    assert work.result()["replica"] == "r1"


async def test_the_same_rounds_give_the_same_digest() -> None:
    first, second, other = [(await light_cpu_task(CTX, rounds=n))["digest"] for n in (100, 100, 101)]
    assert first == second != other


async def test_io_waits_and_leaves_no_file(redis: ArqRedis) -> None:
    result = await light_io_task({**CTX, "redis": redis}, delay_s=0.1, size=5)
    assert result["bytes"] == 5
    assert result["seconds"] >= 0.1
    assert result["replica"] == "r1"
    assert list((settings.WORKER_DATA_DIR / "tmp").iterdir()) == []


async def test_io_leaves_the_loop_alone(redis: ArqRedis) -> None:
    work = asyncio.create_task(light_io_task({**CTX, "redis": redis}, delay_s=0, size=64 * MEGABYTE))
    worst = await longest_wait(work)
    assert worst < work.result()["seconds"] / 2


async def test_io_fails_where_redis_does_not_answer() -> None:
    async with ArqRedis(port=free_port()) as nobody:
        with pytest.raises(RedisConnectionError):
            await light_io_task({**CTX, "redis": nobody}, delay_s=0)


async def test_io_writes_below_the_data_folder_only(redis: ArqRedis, tmp_path: Path) -> None:
    (settings.WORKER_DATA_DIR / "tmp").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="must be a folder, not a link"):
        await light_io_task({**CTX, "redis": redis})


async def test_memory_is_taken_held_and_given_back() -> None:
    before, started = resident(), perf_counter()
    work = asyncio.create_task(light_memory_task(CTX, megabytes=100, hold_s=0.3))
    most = before
    while not work.done():
        most = max(most, resident())
        await asyncio.sleep(0.01)
    assert perf_counter() - started >= 0.3
    assert most - before > 90 * MEGABYTE
    assert resident() - before < 20 * MEGABYTE
    assert work.result()["peak_rss"] > most - MEGABYTE  # the kernel counts the two apart
    assert work.result()["megabytes"] == 100
    assert work.result()["replica"] == "r1"


async def test_taking_memory_leaves_the_loop_alone() -> None:
    started = perf_counter()
    work = asyncio.create_task(light_memory_task(CTX, megabytes=200, hold_s=0))
    worst = await longest_wait(work)
    assert worst < (perf_counter() - started) / 2


async def test_memory_is_given_back_when_the_job_is_cancelled() -> None:
    before = resident()
    work = asyncio.create_task(light_memory_task(CTX, megabytes=100, hold_s=60))
    while resident() - before < 90 * MEGABYTE:
        await asyncio.sleep(0.01)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    assert resident() - before < 20 * MEGABYTE


@pytest.mark.parametrize(("fail_tries", "job_try", "fails"), [(0, 1, True), (0, 9, True), (2, 2, True), (2, 3, False)])
async def test_failure_fails_as_often_as_asked(fail_tries: int, job_try: int, fails: bool) -> None:
    ctx = {**CTX, "job_try": job_try}
    if fails:
        with pytest.raises(LoadTestError, match="boom"):
            await failure_task(ctx, fail_tries, "boom")
    else:
        assert await failure_task(ctx, fail_tries) == {"job_try": job_try, "replica": "r1"}


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        (light_cpu_task, {"rounds": 0}, "rounds is 0, it must be from 1 to"),
        (light_cpu_task, {"rounds": 10**9}, "rounds is 1000000000"),
        (light_io_task, {"delay_s": -1}, "delay_s is -1"),
        (light_io_task, {"size": 10**12}, "size is 1000000000000"),
        (light_memory_task, {"megabytes": 5000}, "megabytes is 5000"),
        (light_memory_task, {"hold_s": float("nan")}, "hold_s is nan"),
        (failure_task, {"fail_tries": 1000}, "fail_tries is 1000"),
        (failure_task, {"message": "x" * 1001}, "message's length is 1001"),
    ],
)
async def test_what_is_out_of_bounds_is_refused(task: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await task(CTX, **arguments)
