"""A stock arq project runs on the library, alone, by one changed import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job, JobStatus, ResultNotFound

from tests.conftest import eventually
from tests.integration.library.conftest import SHOP, Environment, running, variables

STOCK_IMPORT, OUR_IMPORT = "from arq import Worker, run_worker", "from aegis_worker import Worker, run_worker"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisSettings) -> Iterator[Callable[..., Any]]:
    """Starts the stock project with one import from either library; and has its classes here, for pickle."""
    monkeypatch.syspath_prepend(str(SHOP.parent))
    for name, value in variables(redis_server).items():
        monkeypatch.setenv(name, value)

    def start(environment: Environment, library: str, how: str) -> Any:
        folder = tmp_path / library
        folder.mkdir(exist_ok=True)
        text = SHOP.read_text()
        assert text.count(STOCK_IMPORT) == 1
        if library == "aegis_worker":
            text = text.replace(STOCK_IMPORT, OUR_IMPORT)
        (folder / "shop.py").write_text(text)
        return running(
            *(environment.python, "-c", f"import shop; shop.main({how!r})"),
            cwd=folder,
            env=environment.variables(**variables(redis_server)),
            log=folder / "log",
        )

    yield start
    sys.modules.pop("shop", None)


@pytest.mark.parametrize("how", ["class", "arguments"])
@pytest.mark.parametrize("libraries", [["arq"], ["aegis_worker"], ["arq", "aegis_worker"]], ids=" and ".join)
async def test_a_stock_project_runs_by_one_changed_import(
    bare: Environment, shop: Callable[..., Any], redis: ArqRedis, libraries: list[str], how: str
) -> None:
    """What a stock producer sees is the same from stock arq, from the library, and from both beside each other."""
    async with AsyncExitStack() as workers:
        started = [await workers.enter_async_context(shop(bare, library, how)) for library in libraries]
        await eventually(lambda: logged(redis, "startup", len(libraries)))
        seen = await everything(redis)
        await eventually(lambda: logged(redis, "tick", 2))
    log = [line.decode() for line in await redis.lrange("log", 0, -1)]
    assert seen == {
        "add": 41,
        "double": [6, 8],
        "what_ctx_has": ["discount", "enqueue_time", "greeting", "job_id", "job_try", "redis", "score"],
        "busy_at_first": 3,
        "busy": "JobExecutionFailed: max 2 retries exceeded",
        "fails": "SoldOut: no tea",
        "sleeps": "TimeoutError",
        "sleeps_long": "slept",
        "aborted": True,
        "forgotten": "ResultNotFound",
        "enqueues": "of a job",
        "unknown": "JobExecutionFailed: function 'unknown' not found",
        "expired": "JobExecutionFailed: job expired",
        "deferred": JobStatus.deferred,
        "refused": None,
        "info": ("add", (40,), {"other": 2}, True, 1, "arq:queue"),
        "of a job": 41,
    }, [each.text for each in started]
    assert log.count("try 1 of fails") == 1
    assert "try 2 of fails" not in log, "a plain exception is not retried"
    assert log.count("end of add") == log.count("after add") == 1
    assert log.count("shutdown with discount 1") == len(libraries)
    assert [each.process.returncode for each in started] == [0] * len(libraries)


async def logged(redis: ArqRedis, line: str, times: int = 1) -> bool:
    return (await redis.lrange("log", 0, -1)).count(line.encode()) >= times


async def everything(redis: ArqRedis) -> dict[str, Any]:
    """Enqueue as a stock producer, and return what it sees."""
    from shop import Basket  # type: ignore[import-not-found]

    async def enqueue(function: str, *args: Any, _job_id: str | None = None, **options: Any) -> Job:
        job = await redis.enqueue_job(function, *args, _job_id=_job_id or function, **options)
        assert job is not None
        return job

    jobs = [
        await enqueue("add", 40, other=2),
        await enqueue("double", Basket(3, 4)),
        await enqueue("what_ctx_has"),
        await enqueue("busy_at_first"),
        await enqueue("busy"),
        await enqueue("fails"),
        await enqueue("sleeps", 5),
        await enqueue("sleeps_long", 0.1),
        await enqueue("forgotten", 1, other=1, _defer_by=0.5),
        await enqueue("enqueues"),
        await enqueue("unknown"),
    ]
    aborted = await enqueue("sleeps_long", 60, _job_id="aborted")
    deferred = await enqueue("add", 1, other=1, _job_id="deferred", _defer_by=60)
    expired = await enqueue("add", 1, other=1, _job_id="expired", _defer_by=0.4, _expires=0.2)
    seen: dict[str, Any] = {job.job_id: await outcome(job) for job in [*jobs, expired]}
    seen["double"] = [*seen["double"].prices]
    seen["aborted"] = await aborted.abort(timeout=10, poll_delay=0.05)
    seen["deferred"] = await deferred.status()
    seen["refused"] = await redis.enqueue_job("add", 1, other=1, _job_id="add")
    info = await jobs[0].result_info()
    assert info is not None
    seen["info"] = (info.function, info.args, info.kwargs, info.success, info.job_try, info.queue_name)
    seen["of a job"] = await outcome(Job("of a job", redis))
    return seen


async def outcome(job: Job) -> Any:
    """Return a job's result, or what it raised."""
    try:
        return await job.result(timeout=15, poll_delay=0.05)
    except ResultNotFound:
        return "ResultNotFound"
    except TimeoutError:
        return "TimeoutError"
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition(" exceeded: ")[0]
