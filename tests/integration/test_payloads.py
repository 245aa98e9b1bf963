"""Payloads in a worker: what is refused becomes a dead letter, what cannot be stored a failure, and both say why."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import DeserializationError, Job, SerializationError, serialize_job
from arq.worker import func

from aegis_worker import NewJob, enqueue_many
from aegis_worker.payload import PayloadError, Serializer
from aegis_worker.queue import keys

from .conftest import QUEUE, MakeWorker, echo, enqueue, letter, result

KEY, OLD_KEY = "k" * 32, "o" * 32


async def makes(ctx: dict[Any, Any], size: int) -> bytes:
    return b"x" * size


async def odd(ctx: dict[Any, Any]) -> object:
    return object()


async def odd_error(ctx: dict[Any, Any]) -> None:
    class Local(Exception):
        pass

    raise Local("the text")


async def broken_repr(ctx: dict[Any, Any]) -> None:
    class Broken(Exception):
        def __repr__(self) -> str:
            raise ValueError

    raise Broken


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def speak(redis: ArqRedis, serve: MakeWorker) -> Any:
    """Has the producer write with one serializer, and starts a worker that has another, or the same."""

    async def speak(writes: Serializer, reads: Serializer | None = None, **options: Any) -> Any:
        reads = reads or writes
        redis.job_serializer, redis.job_deserializer = writes.dumps, writes.loads
        given = {"job_serializer": reads.dumps, "job_deserializer": reads.loads, "max_tries": 1}
        return await serve(functions=[echo, makes, odd, odd_error, broken_repr], **given | options)

    return speak


async def put(redis: ArqRedis, job_id: str, payload: bytes) -> Job:
    await redis.set(keys.JOB + job_id, payload)
    await redis.zadd(QUEUE, {job_id: 0})
    return Job(job_id, redis, QUEUE, redis.job_deserializer)


@pytest.mark.parametrize("serializer", [Serializer(), Serializer("json"), Serializer(signing_keys=[KEY])])
async def test_values_and_errors_go_there_and_back(redis: ArqRedis, speak: Any, serializer: Serializer) -> None:
    await speak(serializer)
    value = {"a": (1, {2}), 3: b"x"}
    assert await result(await enqueue(redis, "echo", value)) == value
    (job,) = await enqueue_many(redis, [NewJob("echo", (value,))], queue_name=QUEUE)
    assert job is not None
    assert await result(job) == value
    with pytest.raises(TypeError, match="echo\\(\\) takes from 1 to 2") as caught:
        await result(await enqueue(redis, "echo", 1, 2))
    assert "In the worker:" in caught.value.__notes__[0]
    with pytest.raises(Exception, match=r"test_payloads\.odd_error\.<locals>\.Local: the text"):
        await result(await enqueue(redis, "odd_error"))


async def test_a_pickle_is_kept_and_never_loaded(redis: ArqRedis, speak: Any, tmp_path: Path) -> None:
    await speak(Serializer())
    file = tmp_path / "canary"
    payload = pickle.dumps({"t": None, "f": "echo", "a": (Canary(file),), "k": {}, "et": 0})
    job = await put(redis, "poison", payload)
    found = await letter(redis, "poison")
    assert (found["reason"], found["payload"]) == ("undecodable", payload)
    said = "unable to deserialize job: payload is a pickle, but WORKER_SERIALIZER is msgpack"
    assert found["error"] == f"DeserializationError({said!r})"
    with pytest.raises(DeserializationError, match=said):
        await result(job)
    assert not file.exists()
    assert await result(await enqueue(redis, "echo", 1)) == 1


async def test_what_nobody_signed_or_a_stranger_did_is_refused(redis: ArqRedis, speak: Any) -> None:
    await speak(Serializer(signing_keys=[OLD_KEY]), Serializer(signing_keys=[KEY, OLD_KEY]))
    for job_id, serializer, said in (
        ("unsigned", Serializer(), "payload is not signed"),
        (
            "stranger",
            Serializer(signing_keys=["x" * 32]),
            "payload is signed with a key that is not in WORKER_SIGNING_KEY",
        ),
    ):
        await put(redis, job_id, serialize_job("echo", (1,), {}, None, 0, serializer=serializer.dumps))
        found = await letter(redis, job_id)
        assert found["reason"] == "undecodable"
        assert said in found["error"]
    job = await enqueue(redis, "echo", 1)  # with the old key, which is still good
    redis.job_deserializer = Serializer(signing_keys=[KEY]).loads
    assert await result(Job(job.job_id, redis, QUEUE, redis.job_deserializer)) == 1


async def test_what_is_too_large_is_not_sent_and_not_taken(redis: ArqRedis, speak: Any) -> None:
    await speak(Serializer(max_bytes=10_000))
    with pytest.raises(SerializationError) as caught:
        await enqueue(redis, "echo", "x" * 10_000)
    assert isinstance(caught.value.__cause__, PayloadError)
    assert "larger than 10,000" in str(caught.value.__cause__)
    await put(redis, "large", Serializer().dumps({"t": None, "f": "echo", "a": ("x" * 10_000,), "k": {}, "et": 0}))
    found = await letter(redis, "large")
    assert found["reason"] == "undecodable"
    assert "larger than 10,000 bytes, which is WORKER_MAX_PAYLOAD_BYTES" in found["error"]


@pytest.mark.parametrize(
    ("task", "args", "said"),
    [
        ("makes", (30_000,), "result of 30,.* is larger than 20,000 bytes"),
        ("odd", (), "a builtins.object cannot be in a payload"),
    ],
)
async def test_a_result_that_cannot_be_stored_is_a_failure(
    redis: ArqRedis, speak: Any, task: str, args: tuple[Any, ...], said: str
) -> None:
    worker = await speak(Serializer(max_bytes=10_000))
    job = await enqueue(redis, task, *args)
    said = f"the job succeeded, but its result cannot be stored: {said}"
    with pytest.raises(SerializationError, match=said):
        await result(job)
    found = await letter(redis, job.job_id)
    assert found["reason"] == "unserializable"
    assert found["function"] == task
    assert "PayloadError" in found["traceback"]
    assert (worker.jobs_complete, worker.jobs_failed) == (0, 1)


async def test_an_error_that_cannot_be_pickled_is_told_of(redis: ArqRedis, serve: MakeWorker) -> None:
    await serve(functions=[odd_error, broken_repr], max_tries=1)
    job = await enqueue(redis, "odd_error")
    with pytest.raises(
        SerializationError, match=r"the job failed, and Local\('the text'\) cannot be stored: Can't pickle"
    ):
        await result(job)
    found = await letter(redis, job.job_id)
    assert (found["reason"], found["error"]) == ("failed", "Local('the text')")
    job = await enqueue(redis, "broken_repr")
    assert (await letter(redis, job.job_id))["error"].endswith("Broken")


async def test_where_the_arguments_cannot_be_stored_the_letter_is_all_there_is(
    redis: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: dict[str, Any]) -> bytes:
        raise ValueError("never")

    await serve(functions=[func(echo, name="echo")], job_serializer=refuse)
    with caplog.at_level(logging.CRITICAL):
        job = await enqueue(redis, "echo", 1)
        assert (await letter(redis, job.job_id))["reason"] == "unserializable"
    assert await job.result_info() is None
    assert "no result of the job can be stored" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        {"f": []},
        {"a": {}},
        {"k": []},
        {"k": {1: 2}},
        {"t": -1},
        {"t": 10**5000},
        {"t": "1"},
        {"et": 10**30},
        {"et": -1},
        {"et": None},
        {"et": float("nan")},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_what_is_no_job_harms_no_other(redis: ArqRedis, serve: MakeWorker, changed: dict[str, Any]) -> None:
    await serve()
    await put(redis, "poison", pickle.dumps({"t": None, "f": "echo", "a": (), "k": {}, "et": 0} | changed))
    assert (await letter(redis, "poison"))["reason"] == "undecodable"
    assert await result(await enqueue(redis, "echo", 2)) == 2
