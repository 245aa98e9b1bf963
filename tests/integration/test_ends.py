"""How a job ends whatever its code raises, whatever others wrote into Redis, and whatever has expired meanwhile."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from typing import Any

import pytest
from arq import Retry, func
from arq.connections import ArqRedis
from arq.jobs import Job, SerializationError
from arq.worker import JobExecutionFailed, RetryJob

from aegis_worker import Backoff
from aegis_worker.payload import Serializer
from aegis_worker.queue import admin, keys, replicas
from aegis_worker.worker.peers import Peers
from tests.conftest import eventually
from tests.integration.conftest import QUEUE, MakeWorker, echo, enqueue, letter, result


class Panic(BaseException):
    """As pyo3 raises it where Rust panics."""


async def panics(ctx: dict[Any, Any]) -> None:
    raise Panic("index out of bounds")


async def closes(ctx: dict[Any, Any]) -> None:
    raise GeneratorExit


async def exits(ctx: dict[Any, Any]) -> None:
    sys.exit(3)


async def interrupts(ctx: dict[Any, Any]) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (panics, "Panic('index out of bounds')"),
        (closes, "GeneratorExit()"),
        (exits, "SystemExit(3)"),
        (interrupts, "KeyboardInterrupt()"),
    ],
)
async def test_what_is_no_exception_is_a_failure_of_its_job(
    redis: ArqRedis, serve: MakeWorker, task: Any, error: str
) -> None:
    worker = await serve(functions=[task, echo], max_jobs=1)
    job = await enqueue(redis, task.__name__)
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["error"]) == ("failed", error)
    assert "test_ends.py" in found["traceback"]
    with pytest.raises(SerializationError):  # what arq makes of an error that it would not raise
        await result(job)
    assert await result(await enqueue(redis, "echo", 1)) == 1
    assert (len(worker._parts.runner.runs), worker.jobs_failed) == (0, 1)


@pytest.mark.parametrize("hook", ["on_job_start", "on_job_end", "after_job_end"])
async def test_a_hook_that_would_end_the_process_changes_nothing(redis: ArqRedis, serve: MakeWorker, hook: str) -> None:
    worker = await serve(**{hook: exits})
    assert await result(await enqueue(redis, "echo", 1)) == 1
    assert await result(await enqueue(redis, "echo", 2)) == 2
    await eventually(lambda: not worker._parts.runner._hooks)
    assert not worker.main_task.done()


@pytest.mark.parametrize("record", [b"{", b"\xff", b"[" * 100_000, b"7", b'{"state": "running", "functions": 7}'])
async def test_a_health_record_that_cannot_be_read_says_nothing(
    redis: ArqRedis, serve: MakeWorker, record: bytes
) -> None:
    worker = await serve()
    await redis.zadd(keys.replicas(QUEUE), {"odd": 9e15})
    await redis.set(keys.health(QUEUE, "odd"), record)
    job = await enqueue(redis, "nobody_knows")
    assert (await letter(redis, job.job_id))["reason"] == "unknown function"
    assert [replica["replica"] for replica in await replicas.read(redis, QUEUE)] == ["odd", worker.replica]


async def test_an_error_of_our_own_ends_the_job(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def know(self: Peers, function: str) -> bool:
        raise RuntimeError("a fault in the runtime")

    monkeypatch.setattr(Peers, "know", know)
    worker = await serve(max_jobs=1)
    job = await enqueue(redis, "nobody_knows")
    assert (await letter(redis, job.job_id))["error"] == "RuntimeError('a fault in the runtime')"
    assert await result(await enqueue(redis, "echo", 1)) == 1
    await eventually(lambda: not worker._parts.runner.runs)


async def fails_late(ctx: dict[Any, Any], seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("too late")


async def expiring(redis: ArqRedis, name: str, *args: Any) -> tuple[Job, bytes]:
    """Enqueue a job that may begin for a fifth of a second; return it and its payload."""
    job = await enqueue(redis, name, *args, _expires=0.2)
    payload = await redis.get(keys.JOB + job.job_id)
    assert payload is not None
    return job, payload


async def test_a_letter_has_the_payload_that_expired_while_the_job_ran(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(functions=[fails_late])
    job, payload = await expiring(redis, "fails_late", 0.4)
    assert (await letter(redis, job.job_id))["payload"] == payload
    assert await admin.revive(redis, QUEUE, [job.job_id]) == [job.job_id]
    with pytest.raises(ValueError, match="too late"):
        await result(job)


async def test_a_job_that_expired_while_it_ran_is_not_tried_again(redis: ArqRedis, serve: MakeWorker) -> None:
    ended = []

    async def after(ctx: dict[Any, Any]) -> None:
        ended.append(ctx["job_id"])

    worker = await serve(functions=[fails_late, echo], backoff=Backoff(0.01, 0.01), max_jobs=1, after_job_end=after)
    job, payload = await expiring(redis, "fails_late", 0.4)
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["payload"], found["tries"]) == ("expired", payload, 1)
    assert 'raise ValueError("too late")' in found["traceback"]
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await result(job)
    assert await result(await enqueue(redis, "echo", 1)) == 1
    await eventually(lambda: not worker._parts.runner.runs and len(ended) == 2)
    assert await redis.exists(QUEUE, keys.leases(QUEUE), keys.RETRY + job.job_id) == 0


async def test_a_job_that_expired_while_it_ran_is_not_given_back(redis: ArqRedis, serve: MakeWorker) -> None:
    worker = await serve()
    job, payload = await expiring(redis, "slow", 60)
    await asyncio.sleep(0.4)
    worker.handle_sig(signal.SIGTERM)
    await worker.close()
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["payload"], found["function"]) == ("expired", payload, "slow")


async def asks_again(ctx: dict[Any, Any], chained: bool) -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        if chained:
            raise Retry from error
        raise RetryJob from None


async def stands_still(ctx: dict[Any, Any]) -> None:
    await asyncio.sleep(60)  # the line that a time-out finds it in


FORMATS = pytest.mark.parametrize("serializer", [None, Serializer()], ids=["pickle", "msgpack"])


@pytest.fixture
def speak(redis: ArqRedis, serve: MakeWorker) -> MakeWorker:
    """Starts a worker that reads and writes with a serializer, and has the producer do the same."""

    async def speak(serializer: Serializer | None, **options: Any) -> Any:
        dumps, loads = (serializer.dumps, serializer.loads) if serializer else (None, None)
        redis.job_serializer, redis.job_deserializer = dumps, loads
        return await serve(job_serializer=dumps, job_deserializer=loads, **options)

    return speak


@FORMATS
async def test_what_the_last_try_raised_is_told_of(
    redis: ArqRedis, speak: MakeWorker, serializer: Serializer | None
) -> None:
    await speak(serializer, functions=[asks_again], max_tries=2)
    chained, alone = [await enqueue(redis, "asks_again", chained) for chained in (True, False)]
    found = await letter(redis, chained.job_id)
    said = "max 2 retries exceeded: ValueError('what went wrong')"
    assert (found["reason"], found["tries"], found["error"]) == ("failed", 2, f"JobExecutionFailed({said!r})")
    for line in ('raise ValueError("what went wrong")', "raise Retry from error"):
        assert line in found["traceback"]
    with pytest.raises(JobExecutionFailed) as caught:
        await result(chained)
    assert str(caught.value) == said
    with pytest.raises(JobExecutionFailed, match=r"max 2 retries exceeded$"):
        await result(alone)


async def test_what_a_try_raised_survives_a_worker_that_dies_in_the_next(redis: ArqRedis, serve: MakeWorker) -> None:
    async def fails_at_first(ctx: dict[Any, Any]) -> None:
        raise Retry(0.5) from ValueError("what went wrong")

    await serve(functions=[func(fails_at_first, name="fails_at_first")], max_tries=2)
    job = await enqueue(redis, "fails_at_first", _expires=60)
    await eventually(lambda: redis.exists(keys.RAISED + job.job_id))
    await redis.set(keys.RETRY + job.job_id, 2)  # as a claim does after a lease that lapsed
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["tries"]) == ("tries exhausted", 2)
    with pytest.raises(JobExecutionFailed, match=r"max 2 retries exceeded: ValueError\('what went wrong'\)"):
        await result(job)
    assert await redis.keys(f"*:{job.job_id}") == [f"{keys.RESULT}{job.job_id}".encode()]


async def test_a_cancellation_that_nobody_asked_for_is_no_result(redis: ArqRedis, serve: MakeWorker) -> None:
    """Whoever waits for it would take it for its own."""

    async def cancels(ctx: dict[Any, Any]) -> None:
        raise asyncio.CancelledError

    await serve(functions=[func(cancels, name="cancels")], max_tries=2)
    with pytest.raises(JobExecutionFailed, match="max 2 retries exceeded"):
        await result(await enqueue(redis, "cancels"))


@pytest.mark.parametrize("written", [None, bytearray(b"x"), asyncio.CancelledError()], ids=type)
async def test_what_the_serializer_gives_is_no_result(redis: ArqRedis, serve: MakeWorker, written: Any) -> None:
    def dumps(record: dict[str, Any]) -> Any:
        if record.get("r") == "odd":
            if isinstance(written, BaseException):
                raise written
            return written
        return pickle.dumps(record)

    await serve(job_serializer=dumps, job_deserializer=pickle.loads)
    job, other = [await enqueue(redis, "echo", value) for value in ("odd", "even")]
    assert (await letter(redis, job.job_id))["reason"] == "unserializable"
    assert await result(other) == "even"


async def test_a_result_larger_than_redis_takes_holds_up_no_other(
    redis: ArqRedis, serve: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_worker.worker.executor.MOST_RESULT_BYTES", 1000)
    await serve()
    job, other = [await enqueue(redis, "echo", "x" * size) for size in (2000, 10)]
    assert "bytes, and the limit is 1,000" in (await letter(redis, job.job_id))["error"]
    assert await result(other) == "x" * 10


@pytest.mark.parametrize(("keep_s", "least", "most"), [(0.0005, -2, 1), (float("inf"), 1 << 46, 1 << 47)])
async def test_a_result_is_kept_as_long_as_it_says(
    redis: ArqRedis, serve: MakeWorker, keep_s: float, least: int, most: int
) -> None:
    worker = await serve(keep_result=keep_s)
    job = await enqueue(redis, "echo")
    await eventually(lambda: worker.jobs_complete and not worker._parts.runner.runs)
    kept = await redis.pttl(keys.RESULT + job.job_id)
    assert least <= kept <= most
    assert kept != -1, "for ever"


@FORMATS
async def test_a_time_out_tells_where_the_job_was(
    redis: ArqRedis, speak: MakeWorker, serializer: Serializer | None
) -> None:
    await speak(serializer, functions=[stands_still], job_timeout=0.1)
    job = await enqueue(redis, "stands_still")
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["error"]) == ("timeout", "TimeoutError('not done in 0.1s')")
    assert "# the line that a time-out finds it in" in found["traceback"]
    with pytest.raises(TimeoutError, match=r"not done in 0\.1s"):
        await result(job)
