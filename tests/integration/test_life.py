"""A worker's life: a pulse that fails, and how it waits for a Redis that is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from arq import cron
from arq.connections import ArqRedis, RedisSettings
from arq.cron import CronJob
from redis.exceptions import TimeoutError as RedisTimeoutError

from aegis_worker import Worker
from aegis_worker.queue import replicas
from aegis_worker.queue.scripts import RECONNECT
from aegis_worker.redis.connection import prepare
from aegis_worker.worker.pulse import Pulse
from aegis_worker.worker.worker import Parts
from tests.conftest import eventually, free_port
from tests.faults.proxy import Proxy
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, result


async def test_a_server_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_worker.redis.connection.SOCKET_TIMEOUT_S", 0.1)
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        settings = RedisSettings(port=port, conn_retries=0, conn_timeout=0.1, conn_retry_delay=0)  # type: ignore[arg-type]
        worker = Worker([echo], queue_name=QUEUE, redis_settings=settings, handle_signals=False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await worker.async_run()
        assert worker._pool is None


async def test_a_pool_waits_for_no_answer_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_worker.redis.connection.SOCKET_TIMEOUT_S", 0.1)
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as silent:
        pool = ArqRedis(port=silent.sockets[0].getsockname()[1], retry_on_timeout=False)
        await prepare(pool.connection_pool)
        with pytest.raises(RedisTimeoutError):
            async with asyncio.timeout(5):
                await pool.ping()
        await pool.aclose()


async def test_a_health_record_for_each_look(redis: ArqRedis, serve: MakeWorker) -> None:
    """Redis takes no time to live of nothing."""
    await serve(health_check_interval=0)
    assert await result(await enqueue(redis, "echo", 1)) == 1
    (replica,) = await replicas.read(redis, QUEUE)
    assert replica["alive"]


# -- the pulse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, OSError])
async def test_a_beat_that_fails_is_logged_and_all_else_goes_on(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    def on_beat() -> None:
        raise error("no room for a beat")

    worker = await serve(on_beat=on_beat)
    await eventually(lambda: caplog.text.count("no room for a beat") > 1)
    job = await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    assert await job.abort(timeout=3, poll_delay=0.01)


async def test_a_cron_job_that_cannot_be_enqueued_holds_up_no_other(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def dumps(job: dict[str, Any]) -> bytes:
        if job["f"] == "bad":
            raise ValueError("cannot be written")
        return b"x"

    every_second: dict[str, Any] = {"second": set(range(60))}
    jobs: list[CronJob] = [cron(echo, name=name, **every_second) for name in ("bad", "good")]
    worker = await serve(functions=[], cron_jobs=jobs, job_serializer=dumps)
    await eventually(lambda: worker.jobs_failed > 1)
    assert 1 <= caplog.text.count("cron job bad") <= worker.jobs_failed + 2, "once for each run"


async def test_a_pulse_that_ends_ends_the_worker(
    redis: ArqRedis, redis_server: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(pulse: Pulse) -> None:
        raise KeyError("whatever it is")

    monkeypatch.setattr(Pulse, "_once", broken)
    worker = Worker([echo], queue_name=QUEUE, redis_settings=redis_server, handle_signals=False, poll_delay=0.1)
    with pytest.raises(KeyError, match="whatever it is"):
        async with asyncio.timeout(8):
            await worker.async_run()
    await worker.close()
    assert await replicas.read(redis, QUEUE) == []


# -- the stop ----------------------------------------------------------------------------------------------------


async def test_leaves_the_registry_though_its_connections_are_cut(redis: ArqRedis, redis_server: RedisSettings) -> None:
    proxy = Proxy(redis_server.port)
    await proxy.start()

    class Unlucky(Worker):
        async def _stop(self, parts: Parts) -> None:
            await super()._stop(parts)
            proxy.cuts = {"request": 1, "reply": 1}

    settings = replace(redis_server, host="127.0.0.1", port=proxy.port)
    worker = Unlucky([echo], queue_name=QUEUE, redis_settings=settings, handle_signals=False, burst=True)
    await worker.async_run()
    assert [replica["replica"] for replica in await replicas.read(redis, QUEUE)] == [worker.replica]
    await worker.close()
    assert proxy.cuts == {"request": 0, "reply": 0}
    assert await replicas.read(redis, QUEUE) == []
    await proxy.stop()


# -- Redis away --------------------------------------------------------------------------------------------------


async def test_the_waits_for_redis_grow_and_differ(redis: ArqRedis, serve: MakeWorker) -> None:
    """So that not all workers of a fleet come back at once."""
    worker = await serve()
    waits: list[float] = []

    async def pause(parts: Parts, wait_s: float) -> None:
        waits.append(wait_s)
        await asyncio.sleep(0.01)

    worker._pause = pause
    worker._parts.wire._options["port"] = free_port()
    worker._parts.wire.close()
    worker._parts.listener.close()
    worker._poll_now(worker._parts)
    await eventually(lambda: len(waits) >= 40)
    first, late = waits[0], waits[5:]
    assert 0 <= first <= RECONNECT.base
    assert len(set(late)) == len(late)
    assert RECONNECT.limit / 2 < max(late) <= RECONNECT.limit
    assert min(late) < RECONNECT.limit / 2
