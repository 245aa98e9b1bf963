"""The way from stock arq, as its page tells it."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import sys
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import DeserializationError, Job, JobStatus, SerializationError

import aegis_worker
from aegis_worker.project import Project
from aegis_worker.queue import admin
from tests.conftest import copy_checkout
from tests.integration.conftest import QUEUE, MakeWorker, echo
from tests.integration.library.conftest import SHOP, Environment, running, variables
from tests.integration.library.pages import execute, files, page, snippets, write

MIGRATING = "docs/migrating.md"


async def test_a_stock_project_moves_to_the_library(
    bare: Environment, tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    old, new = re.search(r"^```diff\n-(.*)\n\+(.*)\n```", page(MIGRATING), re.MULTILINE).groups()  # type: ignore[union-attr]
    write(tmp_path, {"main.py": files(MIGRATING)["main.py"], "tasks.py": SHOP.read_text()})
    env = bare.variables(**variables(redis_server))
    for line, healthy in ((old, True), (new, False)):
        main = files(MIGRATING)["main.py"]
        assert new in main
        (tmp_path / "main.py").write_text(main.replace(new, line))
        async with running(bare.python, "main.py", cwd=tmp_path, env=env, log=tmp_path / "log"):
            job = await redis.enqueue_job("add", 20, other=3)
            assert job is not None
            assert await job.result(timeout=10, poll_delay=0.05) == 22
            check = await asyncio.create_subprocess_exec(
                *(bare.python, "-m", "arq", "tasks.WorkerSettings", "--check"), cwd=tmp_path, env=env
            )
            assert (await check.wait() == 0) is healthy
        assert ("INFO:arq.worker:" in (tmp_path / "log").read_text()) is (line == old)


async def test_a_worker_in_burst_mode_does_not_wait_for_deferred_jobs(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    """As the table says, where arq's does."""
    job = await redis.enqueue_job("echo", _queue_name=QUEUE, _defer_by=30)
    assert job is not None
    worker = aegis_worker.Worker(
        [echo], queue_name=QUEUE, redis_settings=redis_server, burst=True, handle_signals=False
    )
    async with asyncio.timeout(10):
        await worker.async_run()
    await worker.close()
    assert await job.status() == JobStatus.deferred


async def test_a_stock_project_moves_to_this_repository(
    tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    copy_checkout(tmp_path)
    shown = {path: code for path, code in files(MIGRATING).items() if path.startswith("app/")}
    assert len(shown) == 2
    write(tmp_path, shown)
    env = {"PATH": os.environ["PATH"], "ENV": "none", "LOG_FORMAT": "text", **variables(redis_server)}
    app = [sys.executable, "-m", "aegis_worker"]

    async def check() -> tuple[int | None, str]:
        checked = await asyncio.create_subprocess_exec(
            *(*app, "worker", "--check", "--queue", "shop"), cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE
        )
        _, said = await checked.communicate()
        return checked.returncode, said.decode()

    assert await check() == (0, "")

    serializer = aegis_worker.Serializer()
    space: dict[str, Any] = {}
    (drained,) = (code for code in snippets(MIGRATING) if "is_drained" in code)
    execute(drained, space)
    log = tmp_path / "log"
    async with running(*app, "worker", "--queue", "shop", cwd=tmp_path, env=env, log=log):
        pickled = await redis.enqueue_job("add", 1, 2, _queue_name="arq:queue:shop")
        lost = await redis.enqueue_job("add", 1, 2)
        redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
        packed = await redis.enqueue_job("add", 1, 2, _queue_name="arq:queue:shop")
        assert pickled is not None
        assert packed is not None
        assert lost is not None
        assert await packed.result(timeout=20, poll_delay=0.05) == 3
        with pytest.raises(DeserializationError):
            await pickled.result(timeout=10, poll_delay=0.05)
        (letter,) = await admin.dead_letters(redis, "arq:queue:shop", [pickled.job_id])
        assert letter["reason"] == "undecodable"
        assert await lost.status() == JobStatus.queued, "no worker reads arq's default queue"
        assert not await space["is_drained"](redis)

    # What has no effect is told.
    queue = tmp_path / "app/components/worker/queues/shop.py"
    settings = "    redis_settings = RedisSettings('elsewhere')\n    health_check_key = 'own'\n    job_timout = 5\n"
    queue.write_text("from arq.connections import RedisSettings\n" + queue.read_text() + settings)
    code, said = await check()
    assert code == 0
    quoted = " ".join(page(MIGRATING).split())
    for told in (
        "redis_settings has no effect, since",
        "health_check_key 'own' has no effect",
        "job_timout is no option",
    ):
        assert told in said
    assert (
        "WorkerSettings of shop: redis_settings has no effect, since REDIS_URL says where the workers connect" in quoted
    )
    assert "job_timout is no option of a worker and is ignored; is job_timeout meant?" in quoted
    for line in said.splitlines():
        assert line.startswith("WorkerSettings of shop: ")


async def test_both_formats_can_be_read_for_a_while(redis: ArqRedis, serve: MakeWorker, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    execute(files(MIGRATING)["either.py"], space)
    worker = await serve(job_serializer=space["dumps"], job_deserializer=space["loads"])
    first = await redis.enqueue_job("echo", {1, 2}, _queue_name=QUEUE)
    redis.job_serializer, redis.job_deserializer = space["dumps"], space["loads"]
    second = await redis.enqueue_job("echo", {3}, _queue_name=QUEUE)
    assert first is not None
    assert second is not None
    either = Job(first.job_id, redis, QUEUE, space["loads"])
    assert await either.result(timeout=10, poll_delay=0.02) == {1, 2}
    assert await second.result(timeout=10, poll_delay=0.02) == {3}
    assert worker.jobs_failed == 0

    # A project's queue may have its own as well.
    class WorkerSettings:
        functions = [echo]  # noqa: RUF012
        job_deserializer = space["loads"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENV", "none")
        project = Project(settings="app.core.config:settings", queues="app.components.worker.queues")
        made = project.make_worker("system", WorkerSettings)
    assert made.job_deserializer is space["loads"]


def test_what_msgpack_would_refuse_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    space: dict[str, Any] = {"__name__": "shadow"}
    execute(files(MIGRATING)["shadow.py"], space)
    job = {"t": None, "f": "add", "a": (1, Path("/tmp")), "k": {}, "et": 0}
    assert space["dumps"](job) == pickle.dumps(job)
    assert [record.getMessage() for record in caplog.records] == [
        "arguments of add: a pathlib.PosixPath cannot be in a payload"
    ]
    assert space["dumps"](job | {"a": (1,)}) == pickle.dumps(job | {"a": (1,)})
    assert len(caplog.records) == 1


async def test_classes_and_models_are_carried_as_the_page_says(redis: ArqRedis, serve: MakeWorker) -> None:
    space: dict[str, Any] = {"__name__": "shop"}
    for code in snippets(MIGRATING):
        execute(code, space)
    serializer = aegis_worker.Serializer()
    redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
    packed = {"job_serializer": serializer.dumps, "job_deserializer": serializer.loads}
    await serve(functions=[space["bill"], echo], queue_name="arq:queue:shop", **packed)

    order = space["Order"](number=7, placed="2026-05-01T12:00:00+02:00")
    job = await space["order_bill"](redis, order)
    answer = await job.result(timeout=10, poll_delay=0.02)
    assert space["Receipt"].model_validate(answer) == space["Receipt"](number=7, paid=True)
    with pytest.raises(SerializationError) as refused:
        await redis.enqueue_job("bill", order, _queue_name="arq:queue:shop")
    assert "Order cannot be in a payload" in str(refused.value.__cause__)

    async def echoed(value: Any) -> Any:
        job = await redis.enqueue_job("echo", value, _queue_name="arq:queue:shop")
        assert job is not None
        return await job.result(timeout=10, poll_delay=0.02)

    basket = space["Basket"]
    assert await echoed(basket([1, 2])) == basket([1, 2], "EUR")
    # Jobs of before `currency` was added, and of a class that had a field more.
    record = {"t": None, "f": "f", "k": {}, "et": 0}
    older, other = (
        serializer.dumps(record | {"a": (aegis_worker.register(cls)([1]),)})
        for cls in (
            make_dataclass("Basket", ["prices"], namespace={"__module__": "shop"}),
            make_dataclass("Basket", ["prices", ("owner", str, "me")], namespace={"__module__": "shop"}),
        )
    )
    aegis_worker.register(basket)
    assert serializer.loads(older)["a"] == (basket([1], "EUR"),)
    with pytest.raises(TypeError, match="owner"):
        serializer.loads(other)

    named = datetime(2026, 5, 1, 12, tzinfo=ZoneInfo("Europe/Vienna"))
    back = await echoed(named)
    assert back == named
    assert str(back.tzinfo) == "UTC+02:00"
    for value in (
        namedtuple("Point", "x")(1),
        defaultdict(list),
        OrderedDict(),
        Path("/"),
        type("Text", (str,), {})(""),
    ):
        with pytest.raises(aegis_worker.PayloadError):
            serializer.dumps(record | {"a": (value,)})
