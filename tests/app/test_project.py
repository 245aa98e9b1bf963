"""The team's project as a whole: its queues load, and its worker opens and closes what tasks share."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import httpx
from arq import func
from arq.connections import ArqRedis

from app.components.worker.custom import CustomWorker
from app.project import project
from tests.conftest import ROOT


def test_every_queue_loads_and_has_tasks() -> None:
    environment = {"PATH": os.environ["PATH"], "ENV": "none"}
    command = [sys.executable, "-m", "aegis_worker", "task", "ls", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {task["queue"] for task in json.loads(done.stdout)["tasks"]} == set(project.names)


async def test_the_worker_opens_what_tasks_share_and_closes_it(redis: ArqRedis) -> None:
    async def asks(ctx: dict[str, object]) -> bool:
        seen.append(ctx["http"])
        return True

    seen: list[object] = []
    given = {"redis_pool": redis, "queue_name": "arq:queue:test", "burst": True, "handle_signals": False}
    worker = CustomWorker([func(asks, name="asks")], **given)
    await redis.enqueue_job("asks", _queue_name="arq:queue:test")
    async with asyncio.timeout(10):
        await worker.async_run()
        await worker.close()
    (http,) = seen
    assert isinstance(http, httpx.AsyncClient)
    assert http.is_closed
