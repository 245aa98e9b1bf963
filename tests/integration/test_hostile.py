"""What a hostile producer puts into Redis by hand: a real worker outlives all of it, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus, serialize_job
from msgspec import msgpack

from aegis_worker.payload import Serializer
from aegis_worker.queue import admin as letters
from aegis_worker.queue import keys
from tests.conftest import PASSWORD, ROOT, eventually, project_environment
from tests.unit.test_serializer_refusals import BOMBS, HEAD

from .conftest import QUEUE, MakeWorker, echo, enqueue, result

SYSTEM = "arq:queue:system"
WRITE = Serializer().dumps
GOOD = WRITE({"t": None, "f": "cleanup_temp_files", "a": (), "k": {}, "et": 0})
BAD = 300
MOST_RSS = 160 << 20  #: bytes that a worker may come to, over what it had
#: A terminal's title, its colours, eight-bit and bidirectional controls, a line of its own.
ESCAPES = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202e\r\nok"
CONTROLS = set("\x1b\x07\x9b\u202e\r")


@pytest.fixture
async def redis(redis_server: RedisSettings) -> AsyncIterator[ArqRedis]:
    """A producer, with the rights that producers have."""
    admin = await create_pool(redis_server)
    await admin.flushall()
    pool = await create_pool(
        RedisSettings(port=redis_server.port, username="producer", password=PASSWORD),
        job_serializer=WRITE,
        job_deserializer=Serializer().loads,
    )
    yield pool
    await pool.aclose()
    await admin.aclose()


@pytest.fixture
async def admin(redis_server: RedisSettings) -> AsyncIterator[ArqRedis]:
    pool = await create_pool(redis_server)
    yield pool
    await pool.aclose()


@pytest.fixture
def environment(redis_server: RedisSettings, tmp_path: Path) -> dict[str, str]:
    url = f"redis://localhost:{redis_server.port}"
    return project_environment(
        redis_server, REDIS_URL_LOCAL=url, WORKER_DATA_DIR=str(tmp_path / "data"), LOG_FORMAT="text"
    )


@pytest.fixture
def worker(redis: ArqRedis, environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "aegis_worker.process.serve", "system"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    yield process
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(20)
    finally:
        process.kill()
    written = log.read_text()
    assert code == 0, written[-2000:]
    assert "CRITICAL" not in written
    assert not CONTROLS & set(written)


def my_app(environment: dict[str, str], *arguments: str | bytes) -> str:
    command = [sys.executable, "-m", "aegis_worker", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not CONTROLS & set(done.stdout.decode())
    return done.stdout.decode()


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hostile(rng: random.Random) -> bytes:
    """Return a payload that is no job: a bomb, another format, a job cut short, one with something of a wrong type."""
    good = WRITE({"t": 1, "f": "echo", "a": ("x" * rng.randrange(40), 1, None), "k": {"k": 2.5}, "et": 0})
    match rng.randrange(5):
        case 0:
            return rng.choice([*filter(None, BOMBS.values()), HEAD + b"\xdd\x00\x0f\xff\xf0" + b"\x80" * 0xFFFF0])
        case 1:
            return good[: rng.randrange(1, len(good))]
        case 2:
            return rng.choice([pickle.dumps([1]), b"S" + rng.randbytes(80), b'{"a":[]}', rng.randbytes(50)])
        case 3:
            wrong = rng.choice([None, -1, 1 << 63, 1.5, "", b"\xff", [], {}, [[]], {"a": 1}, "\x1b[31m"])
            field = rng.choice(["t", "et"] if wrong not in (None, 1 << 63) else ["f", "k"])
            record: dict[str, Any] = {"t": None, "f": "echo", "a": [], "k": {}, "et": 0}
            return msgpack.encode(record | {field: wrong})
        case _:
            nested: Any = None
            for _ in range(rng.randrange(1200, 5000)):
                nested = b"\x91" + (nested or b"\xc0")
            return HEAD + b"\x91" + bytes(nested)


async def test_of_a_stream_of_hostile_jobs_the_good_ones_run_and_the_others_are_kept(
    redis: ArqRedis, admin: ArqRedis, worker: subprocess.Popen[bytes], environment: dict[str, str]
) -> None:
    rng = random.Random(1)
    bad = {f"bad{n}{rng.choice(['', ESCAPES, 'x' * 5000])}": hostile(rng) for n in range(BAD)}
    bad["function" + ESCAPES] = WRITE({"t": None, "f": "no" + ESCAPES, "a": (ESCAPES,), "k": {}, "et": 0})
    bad["error"] = WRITE({"t": None, "f": "check_url", "a": (f"x://{ESCAPES}",), "k": {}, "et": 0})
    bad["digits"] = WRITE({"t": None, "f": "no", "a": (10**5000,), "k": {}, "et": 0})
    good = [f"good{n}" for n in range(BAD)]
    await eventually(lambda: admin.exists(keys.replicas(SYSTEM)))
    before = rss(worker.pid)
    for (bad_id, payload), good_id in zip([*bad.items()], [*good, *[""] * (len(bad) - BAD)], strict=True):
        await redis.set(keys.JOB + bad_id, payload)
        if good_id:
            await redis.set(keys.JOB + good_id, GOOD)
        await redis.zadd(SYSTEM, {bad_id: rng.choice(["-inf", -1e300, 0]), **({good_id: 0} if good_id else {})})
    raw = [b"\xff\x1b[31m" + bytes([n]) for n in range(0x80, 0x90)]
    for raw_id in raw:
        await redis.set(keys.JOB.encode() + raw_id, GOOD)
        await redis.zadd(SYSTEM, {raw_id: 0})

    async def all_ended() -> bool:
        return await admin.zcard(SYSTEM) == 0

    await eventually(all_ended, 60)
    assert worker.poll() is None
    assert rss(worker.pid) - before < MOST_RSS
    for job_id in (*good, *map(keys.job_id, raw)):
        info = await Job(job_id, redis, SYSTEM, redis.job_deserializer).result_info()
        assert info is not None
        assert info.success, job_id
    ids = await letters.dead_ids(admin, SYSTEM)
    kept = {letter["id"]: letter for letter in await letters.dead_letters(admin, SYSTEM, ids)}
    assert {job_id: letter["payload"] for job_id, letter in kept.items()} == bad
    assert all(letter["error"] for letter in kept.values())
    left = [key async for key in admin.scan_iter("arq:*") if not key.startswith(b"arq:result:")]
    assert left == []

    my_app(environment, "dead", "ls", "-n", "1000")
    assert {letter["id"] for letter in json.loads(my_app(environment, "dead", "ls", "-n", "1000", "--json"))} == set(
        bad
    )
    odd = "function" + ESCAPES
    for job_id in (odd, "error", "digits", next(iter(bad))):
        my_app(environment, "dead", "show", job_id)
        (shown,) = json.loads(my_app(environment, "dead", "show", "--json", job_id), parse_int=len)
        assert shown["id"] == job_id
        my_app(environment, "job", "status", job_id)
    my_app(environment, "queue", "ls")
    my_app(environment, "dead", "retry", odd)
    await eventually(lambda: admin.zscore(keys.dead(SYSTEM), odd))
    my_app(environment, "dead", "retry", "--all")

    async def all_dead_again() -> bool:
        return await admin.zcard(SYSTEM) == 0 and await admin.zcard(keys.dead(SYSTEM)) == len(bad)

    await eventually(all_dead_again, 60)
    my_app(environment, "dead", "discard", odd, "error")
    my_app(environment, "dead", "discard", "--all")
    assert await admin.exists(keys.dead(SYSTEM)) == 0
    assert rss(worker.pid) - before < MOST_RSS


async def put(redis: ArqRedis, job_id: str | bytes, score: float | str = 0) -> None:
    raw = job_id.encode() if isinstance(job_id, str) else job_id
    await redis.set(keys.JOB.encode() + raw, serialize_job("echo", (1,), {}, None, 0))
    await redis.zadd(QUEUE, {raw: score})


@pytest.mark.parametrize("score", ["inf", 1e300])
async def test_a_time_that_never_comes_keeps_no_worker_busy(
    admin: ArqRedis, serve: MakeWorker, environment: dict[str, str], score: float | str
) -> None:
    await admin.flushall()
    worker = await serve()
    looks = worker._parts.intake._scripts._claims
    await put(admin, "never", score)
    await put(admin, "now")
    assert await result(Job("now", admin, QUEUE)) == 1
    await asyncio.sleep(0.5)
    assert worker._parts.intake._scripts._claims - looks < 10
    await admin.set(keys.JOB + "never", GOOD)
    await admin.rename(QUEUE, SYSTEM)
    assert json.loads(my_app(environment, "queue", "show", "system", "--json"))["jobs"][0]["state"] == "deferred"
    assert "deferred" in my_app(environment, "job", "status", "never")


@pytest.mark.parametrize("score", ["-inf", -1e300, -1])
async def test_a_time_that_is_none_holds_up_no_other_job(admin: ArqRedis, serve: MakeWorker, score: float) -> None:
    await admin.flushall()
    await put(admin, "odd", score)
    await put(admin, "even")
    await serve(functions=[echo])
    for job_id in ("odd", "even"):
        assert await result(Job(job_id, admin, QUEUE)) == 1


async def test_an_id_that_is_not_utf_8_is_changed_and_takes_no_others_place(
    admin: ArqRedis, serve: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    await admin.flushall()
    await put(admin, "\\xff", 1e15)
    await put(admin, b"\xff")
    await admin.zadd(keys.ABORT, {b"\xfe": "inf"})
    await serve(functions=[echo])
    assert await result(Job("\\xff_", admin, QUEUE)) == 1
    assert "job id b'\\xff' is not UTF-8: the job goes on as \\xff_" in caplog.text
    assert await Job("\\xff", admin, QUEUE).status() is JobStatus.deferred
    assert await result(await enqueue(admin, "echo", 2)) == 2
