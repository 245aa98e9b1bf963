"""The runtime on a real server: stock arq producers and workers must see no difference, and no job may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from time import monotonic
from typing import Any

import arq.worker
import pytest
from arq import Retry, cron, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job, JobStatus, ResultNotFound
from arq.worker import JobExecutionFailed

from aegis_worker import Backoff, Worker
from aegis_worker.queue import keys, replicas
from aegis_worker.redis.pool import create_pool
from aegis_worker.settings import Settings
from tests.conftest import eventually, free_port
from tests.integration.conftest import MakeWorker as MakeServed

QUEUE = "arq:queue:test"


async def echo(ctx: dict[Any, Any], value: object) -> object:
    return value


async def slow(ctx: dict[Any, Any], seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def fails(ctx: dict[Any, Any]) -> None:
    raise KeyError("the original error")


async def fails_once(ctx: dict[Any, Any]) -> int:
    if ctx["job_try"] == 1:
        raise RuntimeError("first try")
    return int(ctx["job_try"])


async def asks_again(ctx: dict[Any, Any]) -> int:
    if ctx["job_try"] == 1:
        raise Retry(defer=1)
    return int(ctx["job_try"])


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(redis: ArqRedis, redis_server: RedisSettings) -> MakeWorker:
    def make(**options: Any) -> Worker:
        given: dict[str, Any] = {
            "functions": [echo, slow, fails, fails_once, asks_again],
            "queue_name": QUEUE,
            "redis_settings": redis_server,
            "poll_delay": 0.02,
            "handle_signals": False,
            "allow_abort_jobs": True,
            "health_check_interval": 0.2,
        }
        return Worker(**(given | options))

    return make


async def drain(worker: Worker) -> None:
    """Run a worker until nothing is due."""
    worker.burst = True
    await worker.async_run()
    await worker.close()


async def enqueue(redis: ArqRedis, name: str, *args: Any, **options: Any) -> Job:
    job = await redis.enqueue_job(name, *args, _queue_name=QUEUE, **options)
    assert job is not None
    return job


async def running(worker: Worker, check: Callable[[], bool]) -> None:
    """Wait until a condition holds while a worker runs."""
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.01)


async def no_trace(redis: ArqRedis, job: Job) -> bool:
    """Whether nothing of a job but its result is left."""
    prefixes = (keys.JOB, keys.IN_PROGRESS, keys.RETRY)
    return not await redis.exists(*(p + job.job_id for p in prefixes)) and (
        await redis.zscore(QUEUE, job.job_id) is None
    )


async def test_a_stock_producer_gets_its_results(redis: ArqRedis, make_worker: MakeWorker) -> None:
    jobs = [await enqueue(redis, "echo", {"n": n}) for n in range(250)]
    await drain(make_worker())
    assert [await job.result(timeout=1) for job in jobs] == [{"n": n} for n in range(250)]
    info = await jobs[0].result_info()
    assert info is not None
    assert (info.function, info.job_try, info.queue_name, info.success) == ("echo", 1, QUEUE, True)
    assert all([await no_trace(redis, job) for job in jobs])


async def test_shares_a_queue_with_a_stock_worker_and_runs_each_job_once(
    redis: ArqRedis, redis_server: RedisSettings, make_worker: MakeWorker
) -> None:
    async def count(ctx: dict[Any, Any], key: str) -> None:
        await ctx["redis"].incr(f"runs:{key}")
        await asyncio.sleep(0.05)

    jobs = [await enqueue(redis, "count", str(n)) for n in range(300)]
    function = func(count, name="count")
    ours = [make_worker(functions=[function], max_jobs=5) for _ in range(2)]
    stock = arq.worker.Worker(
        functions=[function],
        queue_name=QUEUE,
        redis_settings=redis_server,
        burst=True,
        poll_delay=0.02,
        handle_signals=False,
    )
    await asyncio.gather(*(drain(worker) for worker in ours), stock.async_run())
    await stock.close()
    assert [await redis.get(f"runs:{n}") for n in range(300)] == [b"1"] * 300
    assert all(worker.jobs_complete for worker in [*ours, stock])
    assert sum(worker.jobs_complete for worker in [*ours, stock]) == 300
    assert {await job.status() for job in jobs} == {JobStatus.complete}


async def test_jobs_that_run_elsewhere_hide_nothing_behind_them(redis: ArqRedis, make_worker: MakeWorker) -> None:
    for n in range(350):
        job = await enqueue(redis, "echo", n)
        await redis.set(keys.IN_PROGRESS + job.job_id, b"1")
    last = await enqueue(redis, "echo", "found", _defer_by=0.001)
    worker = make_worker()
    task = asyncio.create_task(worker.async_run())
    assert await last.result(timeout=3, poll_delay=0.02) == "found"
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_a_failing_job_is_tried_again_until_it_succeeds(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "fails_once")
    worker = make_worker(backoff=Backoff(0.05, 1))
    task = asyncio.create_task(worker.async_run())
    assert await job.result(timeout=5, poll_delay=0.02) == 2
    assert worker.jobs_retried == 1
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_the_last_try_keeps_the_original_error(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "fails")
    worker = make_worker(backoff=Backoff(0.001, 0.001), max_tries=3)
    task = asyncio.create_task(worker.async_run())
    with pytest.raises(KeyError, match="the original error"):
        await job.result(timeout=5, poll_delay=0.02)
    info = await job.result_info()
    assert info is not None
    assert info.job_try == 3
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()
    assert await no_trace(redis, job)


async def test_without_a_backoff_a_failure_is_final_as_in_arq(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "fails")
    await drain(make_worker())
    info = await job.result_info()
    assert info is not None
    assert (info.success, info.job_try) == (False, 1)


async def test_arq_retry_waits_as_long_as_it_asks(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "asks_again")
    worker = make_worker()
    await drain(worker)
    assert await job.status() == JobStatus.deferred
    await asyncio.sleep(1.05)
    await drain(make_worker())
    assert await job.result(timeout=1) == 2


async def test_a_job_past_its_time_is_cancelled_and_tried_again(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "slow", 30)
    worker = make_worker(job_timeout=0.05, backoff=Backoff(0.001, 0.001), max_tries=2)
    task = asyncio.create_task(worker.async_run())
    with pytest.raises(TimeoutError):
        await job.result(timeout=5, poll_delay=0.02)
    assert worker.jobs_retried == 1
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [("nobody", None, "function 'nobody' not found"), ("echo", b"", "job expired"), ("echo", b"\x00", "unable to de")],
)
async def test_what_cannot_run_ends_as_a_failure(
    redis: ArqRedis, make_worker: MakeWorker, name: str, payload: bytes | None, message: str
) -> None:
    job = await enqueue(redis, name, 1)
    if payload is not None:
        await (redis.set(keys.JOB + job.job_id, payload) if payload else redis.delete(keys.JOB + job.job_id))
    await drain(make_worker())
    with pytest.raises((JobExecutionFailed, RuntimeError), match=message):
        await job.result(timeout=1)
    assert await no_trace(redis, job)


async def test_drain_lets_running_jobs_finish_and_takes_no_new_ones(redis: ArqRedis, make_worker: MakeWorker) -> None:
    jobs = [await enqueue(redis, "slow", 0.4) for _ in range(10)]
    worker = make_worker(job_completion_wait=5, max_jobs=10)
    task = asyncio.create_task(worker.async_run())
    await running(worker, lambda: len(worker.tasks) == 10)
    late = await enqueue(redis, "echo", "late")
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()
    assert [await job.result(timeout=1) for job in jobs] == ["slept"] * 10
    assert await late.status() == JobStatus.queued


async def test_an_on_stop_that_raises_does_not_keep_a_drain_up(
    redis: ArqRedis, serve: MakeServed, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await serve()  # which waits for a job
    worker.on_stop = {}.__getitem__
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(1):
        await worker.main_task
    assert "on_stop raised" in caplog.text


async def test_what_does_not_finish_in_the_drain_goes_back_without_losing_a_try(
    redis: ArqRedis, make_worker: MakeWorker
) -> None:
    job = await enqueue(redis, "slow", 30)
    for _ in range(4):  # more often than max_tries
        worker = make_worker(job_completion_wait=0.1, max_tries=2)
        task = asyncio.create_task(worker.async_run())
        await running(worker, lambda: bool(worker.tasks))  # noqa: B023
        worker.handle_sig(signal.SIGTERM)
        await task
        await worker.close()
        assert await job.status() == JobStatus.queued
        assert not await redis.exists(keys.RETRY + job.job_id, keys.IN_PROGRESS + job.job_id)


async def test_a_second_signal_cancels_at_once(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "slow", 30)
    worker = make_worker(job_completion_wait=60)
    task = asyncio.create_task(worker.async_run())
    await running(worker, lambda: bool(worker.tasks))
    worker.handle_sig(signal.SIGTERM)
    worker.handle_sig(signal.SIGTERM)
    async with asyncio.timeout(2):
        await task
        await worker.close()
    assert await job.status() == JobStatus.queued


async def test_startup_and_shutdown_run_once_and_in_order(redis: ArqRedis, make_worker: MakeWorker) -> None:
    calls: list[str] = []

    def hook(name: str) -> Callable[[dict[Any, Any]], Coroutine[Any, Any, None]]:
        async def call(ctx: dict[Any, Any]) -> None:
            calls.append(name)

        return call

    class Mine(Worker):
        async def startup(self) -> None:
            await super().startup()
            calls.append("startup")
            self.ctx["tool"] = "open"

        async def shutdown(self) -> None:
            calls.append("shutdown")
            await super().shutdown()

    async def uses(ctx: dict[Any, Any]) -> object:
        return ctx["tool"]

    job = await enqueue(redis, "uses")
    made = make_worker()
    worker = Mine(
        [func(uses, name="uses")],
        queue_name=QUEUE,
        redis_settings=made.redis_settings,
        handle_signals=False,
        **{name: hook(name) for name in ("on_startup", "on_job_start", "on_job_end", "after_job_end", "on_shutdown")},
    )
    await drain(worker)
    assert calls == ["on_startup", "startup", "on_job_start", "on_job_end", "after_job_end", "shutdown", "on_shutdown"]
    assert await job.result(timeout=1) == "open"


async def test_hooks_that_raise_change_nothing(redis: ArqRedis, make_worker: MakeWorker) -> None:
    async def broken(ctx: dict[Any, Any]) -> None:
        raise RuntimeError("hook")

    job = await enqueue(redis, "echo", "kept")
    await drain(make_worker(on_job_start=broken, on_job_end=broken, after_job_end=broken))
    assert await job.result(timeout=1) == "kept"


async def test_abort_ends_running_and_deferred_jobs(redis: ArqRedis, make_worker: MakeWorker) -> None:
    job = await enqueue(redis, "slow", 30)
    deferred = await enqueue(redis, "echo", 1, _defer_by=3600)
    worker = make_worker()
    task = asyncio.create_task(worker.async_run())
    await running(worker, lambda: bool(worker.tasks))
    assert await job.abort(timeout=3, poll_delay=0.02)
    assert await deferred.abort(timeout=3, poll_delay=0.02)
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()
    assert await no_trace(redis, job)
    assert await no_trace(redis, deferred)


async def test_a_paused_queue_is_left_alone(redis: ArqRedis, make_worker: MakeWorker) -> None:
    await redis.set(keys.paused(QUEUE), 1)
    job = await enqueue(redis, "echo", 1)
    worker = make_worker()
    task = asyncio.create_task(worker.async_run())
    await asyncio.sleep(0.2)
    assert await job.status() == JobStatus.queued
    await redis.delete(keys.paused(QUEUE))
    assert await job.result(timeout=3, poll_delay=0.02) == 1
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_keeping_results_forever_or_not_at_all(redis: ArqRedis, make_worker: MakeWorker) -> None:
    kept, failed = await enqueue(redis, "echo", 1), await enqueue(redis, "fails")
    await drain(make_worker(keep_result_forever=True))
    assert await redis.ttl(keys.RESULT + kept.job_id) == -1
    assert await redis.ttl(keys.RESULT + failed.job_id) == -1
    dropped = await enqueue(redis, "echo", 1)
    await drain(make_worker(keep_result=0))
    with pytest.raises(ResultNotFound):
        await dropped.result(timeout=1)


async def test_cron_jobs_run(redis: ArqRedis, make_worker: MakeWorker) -> None:
    ran = asyncio.Event()

    async def tick(ctx: dict[Any, Any]) -> None:
        ran.set()

    worker = make_worker(functions=[], cron_jobs=[cron(tick, second=set(range(60)), name="tick")])
    task = asyncio.create_task(worker.async_run())
    async with asyncio.timeout(4):
        await ran.wait()
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()


async def test_each_replica_has_a_record_that_ends_with_it(redis: ArqRedis, make_worker: MakeWorker) -> None:
    workers = [make_worker(replica=name) for name in ("a", "b")]
    tasks = [asyncio.create_task(worker.async_run()) for worker in workers]
    async with asyncio.timeout(5):
        while len(await replicas.read(redis, QUEUE)) < 2:
            await asyncio.sleep(0.02)
    workers[0].handle_sig(signal.SIGTERM)
    await tasks[0]
    await workers[0].close()
    (left,) = await replicas.read(redis, QUEUE)
    assert (left["replica"], left["alive"], left["state"]) == ("b", True, "running")

    tasks[1].cancel()  # vanishes without a word
    async with asyncio.timeout(5):
        while (await replicas.read(redis, QUEUE))[0]["alive"]:
            await asyncio.sleep(0.05)
    workers[1].handle_sig(signal.SIGTERM)
    await workers[1].close()


class Relay:
    """A port between a worker and the server, to cut and mend what runs through it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.streams: list[asyncio.StreamWriter] = []

    async def mend(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def cut(self) -> None:
        self.server.close()
        for stream in self.streams:
            stream.transport.abort()
        self.streams.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.streams += [writer, there_writer]
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_redis_away_is_waited_for_and_results_are_stored_when_it_is_back(
    redis: ArqRedis, redis_server: RedisSettings, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay(redis_server.port)
    await relay.mend()
    beats: list[float] = []
    worker = make_worker(
        redis_settings=replace(redis_server, port=relay.port), on_beat=lambda: beats.append(monotonic())
    )
    job = await enqueue(redis, "slow", 0.2)
    task = asyncio.create_task(worker.async_run())
    await running(worker, lambda: bool(worker.tasks and beats))

    relay.cut()
    await running(worker, lambda: not worker.tasks)
    await asyncio.sleep(1.2)
    last = len(beats)
    await asyncio.sleep(1.2)
    assert len(beats) == last  # no beat without Redis: the health check sees it
    assert await job.result_info() is None
    assert "Redis is unavailable" in caplog.text
    assert "the ends of 1 jobs wait to be stored" in caplog.text

    await relay.mend()
    assert await job.result(timeout=12, poll_delay=0.02) == "slept"
    after = await enqueue(redis, "echo", "after")
    assert await after.result(timeout=12, poll_delay=0.02) == "after"
    await running(worker, lambda: len(beats) > last)
    worker.handle_sig(signal.SIGTERM)
    await task
    await worker.close()
    relay.cut()
    assert (worker.jobs_complete, worker.jobs_retried) == (2, 0)


async def test_the_pool_honours_the_settings(redis: ArqRedis, redis_server: RedisSettings) -> None:
    config = Settings(
        _env_file=None,
        REDIS_URL=f"redis://localhost:{redis_server.port}",
        REDIS_PASSWORD=redis_server.password,
        REDIS_DB=3,
        REDIS_MAX_CONNECTIONS=2,
        REDIS_SOCKET_TIMEOUT=7,
        REDIS_SOCKET_KEEPALIVE_OPTIONS={"TCP_KEEPIDLE": 11, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2},
    )
    pool = create_pool(config, queue_name=QUEUE)
    # More at once than there are connections: they wait for one instead of failing.
    await asyncio.gather(*(pool.enqueue_job("echo", n) for n in range(20)))
    assert len(await pool.queued_jobs()) == 20
    connections = await redis.client_list()
    assert sum(connection["db"] == "3" for connection in connections) == 2
    connection = await pool.connection_pool.get_connection()
    sock = connection._writer.get_extra_info("socket")
    assert connection.socket_timeout == 7
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 11
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 2
    await connection.disconnect()
    await pool.aclose()


async def test_a_connection_that_leads_nowhere_is_given_up(
    redis: ArqRedis, serve: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stands still, with stock arq's pool, which has no time-out of its own."""
    monkeypatch.setattr("aegis_worker.redis.connection.SOCKET_TIMEOUT_S", 0.3)
    worker = await serve()
    await redis.client_pause(1500)
    worker._poll_now(worker._parts)
    await eventually(lambda: worker._failures, within_s=1.4)
    job = await redis.enqueue_job("echo", 1, _queue_name=QUEUE)
    assert job is not None
    assert await job.result(timeout=5, poll_delay=0.02) == 1
