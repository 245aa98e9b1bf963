"""A replica becomes the master, behind an address that stays the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import ReadOnlyError

from aegis_worker import Worker
from aegis_worker.queue import keys
from aegis_worker.redis.connection import prepare
from tests.conftest import eventually
from tests.faults.proxy import Proxy
from tests.faults.server import Server
from tests.integration.conftest import QUEUE, counted, echo, enqueue, result


async def writes(ctx: dict[Any, Any]) -> int:
    return int(await ctx["redis"].incr("written"))


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[Server, Server]]:
    """A master and its replica."""
    master, replica = Server(tmp_path / "a"), Server(tmp_path / "b")
    await asyncio.gather(master.start(), replica.start())
    await replica.redis.replicaof("127.0.0.1", master.port)
    await master.redis.set("seen", 1)
    await eventually(lambda: replica.redis.exists("seen"))
    yield master, replica
    for server in (master, replica):
        await server.redis.aclose()
        server.stop()


async def fail_over(old: Redis, new: Server) -> None:
    await old.wait(1, 5000)
    await new.redis.replicaof("NO", "ONE")
    await old.replicaof("127.0.0.1", new.port)


@pytest.fixture
async def proxy(servers: tuple[Server, Server]) -> AsyncIterator[Proxy]:
    """The address of the master; it may leave connections open that lead to the old one."""
    proxy = Proxy(servers[0].port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.mark.parametrize("cut", [False, True], ids=["connections stay open", "connections are cut"])
async def test_jobs_end_once_on_the_new_master(servers: tuple[Server, Server], proxy: Proxy, cut: bool) -> None:
    old, new = servers
    worker = Worker(
        [echo, counted, writes],
        queue_name=QUEUE,
        redis_settings=RedisSettings(host="127.0.0.1", port=proxy.port),
        handle_signals=False,
        health_check_interval=0.2,
    )
    task = asyncio.create_task(worker.async_run())
    job_id = (await enqueue(old.redis, "counted", 1.5)).job_id
    await eventually(lambda: old.redis.exists(f"runs:{job_id}"))
    await asyncio.gather(*(worker.pool.get("seen") for _ in range(20)))

    await fail_over(old.redis, new)
    proxy.target = new.port
    if cut:
        proxy.cut_all()
    jobs = [await enqueue(new.redis, "echo", n) for n in range(20)]
    assert [await result(job, within_s=5) for job in jobs] == list(range(20))
    running = Job(job_id, new.redis, QUEUE)
    assert await result(running, within_s=5) == 1
    assert (await running.result_info()).job_try == 1  # type: ignore[union-attr]
    assert await new.redis.get(f"runs:{job_id}") == b"1"
    await eventually(lambda: new.redis.exists(keys.health(QUEUE, worker.replica)), within_s=5)
    assert await result(await enqueue(new.redis, "writes")) == 1
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_the_first_error_has_all_connections_made_anew(servers: tuple[Server, Server], proxy: Proxy) -> None:
    old, new = servers
    redis = ArqRedis(ConnectionPool(host="127.0.0.1", port=proxy.port))
    await prepare(redis.connection_pool)
    await asyncio.gather(*(redis.get("seen") for _ in range(5)))
    await fail_over(old.redis, new)
    proxy.target = new.port
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get("seen").incr("count").get("seen")
        first, error, last = await pipe.execute(raise_on_error=False)
    assert (first, type(error), last) == (b"1", ReadOnlyError, b"1")
    assert sorted(await asyncio.gather(*(redis.incr("count") for _ in range(5)))) == [1, 2, 3, 4, 5]
    await redis.aclose(close_connection_pool=True)
