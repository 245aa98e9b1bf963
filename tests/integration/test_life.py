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
from aegis_worker.queue.scripts import RECONNECT, Scripts
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


# -- starts, and what is changed meanwhile -------------------------------------------------------------------------


async def test_a_worker_whose_start_failed_can_start_again(redis: ArqRedis, redis_server: RedisSettings) -> None:
    starts: list[int] = []

    async def on_startup(ctx: dict[Any, Any]) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise OSError("the database is away")

    await enqueue(redis, "echo", 1)
    options: dict[str, Any] = {"queue_name": QUEUE, "redis_settings": redis_server, "handle_signals": False}
    worker = Worker([echo], on_startup=on_startup, burst=True, **options)
    with pytest.raises(OSError, match="the database is away"):
        await worker.async_run()
    await worker.close()
    async with asyncio.timeout(10):
        await worker.async_run()
    await worker.close()
    assert worker.jobs_complete == 1


async def test_a_worker_that_is_closed_while_it_starts_does_not_serve(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def on_startup(ctx: dict[Any, Any]) -> None:
        begun.set()
        await go.wait()

    worker = Worker([echo], queue_name=QUEUE, redis_settings=redis_server, handle_signals=False, on_startup=on_startup)
    serving = asyncio.create_task(worker.async_run())
    await begun.wait()
    await worker.close()
    go.set()
    with pytest.raises(RuntimeError, match="the worker was closed while it started"):
        await serving
    assert await replicas.read(redis, QUEUE) == []


async def test_what_is_set_while_it_serves_counts(redis: ArqRedis, serve: MakeWorker) -> None:
    worker, beats = await serve(allow_abort_jobs=False), []
    worker.on_beat = lambda: beats.append(1)
    worker.allow_abort_jobs = True
    job = await enqueue(redis, "slow", 60)
    await eventually(lambda: worker.tasks)
    await job.abort(timeout=3, poll_delay=0.05)
    await eventually(lambda: beats and worker.jobs_failed == 1)


async def test_methods_of_arqs_that_are_not_called_are_named(
    redis: ArqRedis, redis_server: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Worker):
        async def heart_beat(self) -> None: ...

    Own([echo], redis_settings=redis_server, handle_signals=False)
    assert caplog.messages == ["Own.heart_beat has no effect: this worker does not call it"]


async def test_an_end_that_is_stored_while_the_worker_turns_busy_frees_it(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many ends wait to be stored, and they are stored while the worker waits for another reply of Redis."""
    monkeypatch.setattr("aegis_worker.worker.runner.MOST_JOBS", 0)
    whole, may_store, released = Scripts.settle, asyncio.Event(), []

    async def settle(self: Scripts, batch: Any) -> list[int]:
        await may_store.wait()
        return await whole(self, batch)

    async def unlisten() -> None:
        released.append(1)
        await stop_listening()
        may_store.set()
        await eventually(lambda: not worker._parts.commits.pending)

    monkeypatch.setattr(Scripts, "settle", settle)
    worker = await serve(max_jobs=2)
    stop_listening = worker._parts.listener.unlisten
    monkeypatch.setattr(worker._parts.listener, "unlisten", unlisten)
    await enqueue(redis, "echo", 1)
    await asyncio.sleep(0.3)
    await enqueue(redis, "echo", 2)
    await eventually(lambda: released)
    assert await result(await enqueue(redis, "echo", 3), within_s=2) == 3
