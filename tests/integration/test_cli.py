"""The command line as scripts and people use it: real processes, a real server, and a real worker where jobs run."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus

from aegis_worker.payload import Serializer
from aegis_worker.queue import admin, keys
from tests.conftest import ROOT, eventually
from tests.integration.conftest import Cli, ended

SYSTEM, LOAD_TEST = "arq:queue:system", "arq:queue:load_test"


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def worker(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker of ``load_test`` and ``system``, for all tests; ``media`` is served by nobody."""
    log = tmp_path_factory.mktemp("worker") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "aegis_worker", "worker", "--queue", "load_test", "--queue", "system"],
            cwd=ROOT,
            env=cli.environment,
            stdout=file,
            stderr=file,
        )
    yield
    process.terminate()
    try:
        code = process.wait(20)
    finally:
        process.kill()
        print(log.read_text())
    assert code == 0


@pytest.fixture
async def producer(redis_server: RedisSettings) -> AsyncIterator[ArqRedis]:
    """A stock producer that writes as the worker reads, on the database as it is: the worker stays between tests."""
    serializer = Serializer()
    pool = await create_pool(redis_server, job_serializer=serializer.dumps, job_deserializer=serializer.loads)
    yield pool
    await pool.aclose()


@pytest.fixture
async def served(producer: ArqRedis, worker: None) -> None:
    """Wait until the worker has both queues; a test that failed may have left one paused."""
    await producer.delete(keys.paused(LOAD_TEST))

    async def recorded() -> bool:
        return all([await producer.zcard(keys.replicas(queue)) for queue in (SYSTEM, LOAD_TEST)])

    await eventually(recorded)


@asynccontextmanager
async def paused(redis: ArqRedis, queue_name: str) -> AsyncIterator[None]:
    await redis.set(keys.paused(queue_name), 1)
    try:
        yield
    finally:
        await redis.delete(keys.paused(queue_name))


async def enqueue(redis: ArqRedis, task: str, *args: Any, queue: str = LOAD_TEST, **options: Any) -> str:
    job = await redis.enqueue_job(task, *args, _queue_name=queue, **options)
    assert job is not None
    return job.job_id


def job_of(redis: ArqRedis, job_id: str) -> Job:
    return Job(job_id, redis, LOAD_TEST, redis.job_deserializer)


async def enqueue_running(redis: ArqRedis) -> str:
    """Enqueue a job that would run for a minute, and wait until it does."""
    job_id = await enqueue(redis, "light_io_task", 60)
    await eventually(lambda: redis.exists(keys.IN_PROGRESS + job_id))
    return job_id


# -- tasks, health ---------------------------------------------------------------------------------------------------


async def test_tasks(cli: Cli) -> None:
    table, document, of_one = await cli.each("task ls", "task ls --json", "task ls --queue system --json")
    assert {table.code, document.code, of_one.code} == {0}
    assert "light_cpu_task(rounds=40000)" in table.out
    (url,) = [task for task in document.data["tasks"] if task["task"] == "check_url"]
    assert (url["queue"], url["signature"], url["timeout_s"], url["max_tries"]) == (
        "system",
        "(url, expect=200)",
        300,
        3,
    )
    assert {task["queue"] for task in of_one.data["tasks"]} == {"system"}


@pytest.mark.usefixtures("served")
async def test_health(cli: Cli) -> None:
    status, probe, table, line, unserved, unserved_line = await cli.each(
        "health status --json",
        "health probe --json",
        "health status",
        "health probe --queue system",
        "health status --queue system --queue media",
        "health probe --queue media",
    )
    assert {answer.code for answer in (status, probe, table, line)} == {0}
    assert status.data["healthy"]
    assert status.data["redis"]["policy"] == "noeviction"
    assert {q["queue"]: [(r["state"], r["version"]) for r in q["replicas"]] for q in status.data["queues"]} == {
        "system": [("running", "7.1")],
        "load_test": [("running", "7.1")],
    }
    assert probe.data == {"healthy": True, "live_replicas": {"system": 1, "load_test": 1}}
    assert "served" in table.out
    assert "7.1" in table.out
    assert "noeviction, answers in" in table.out
    assert line.out == "healthy; live replicas: system 1\n"
    assert (unserved.code, unserved_line.code) == (1, 1)
    assert "no live replica" in unserved.out
    assert unserved_line.out == "unhealthy; live replicas: media 0\n"


# -- queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_a_queue_is_paused_looked_at_emptied_and_resumed(cli: Cli, producer: ArqRedis) -> None:
    runs = await enqueue_running(producer)
    pause = await cli("queue pause load_test --json")
    assert (pause.code, pause.data) == (0, {"queue": "load_test", "paused": True})
    deferred = await enqueue(producer, "light_io_task", _defer_by=3600)
    due = await enqueue(producer, "light_io_task")

    asked = monotonic()
    ls, table, show, page, declined = await cli.each(
        "queue ls --json", "queue ls", "queue show load_test --json", "queue show load_test", "queue purge load_test"
    )
    assert {answer.code for answer in (ls, table, show, page)} == {0}
    stands = {q["queue"]: q for q in ls.data}
    assert stands["load_test"]["oldest_due_s"] >= 0
    assert stands["load_test"] | {"oldest_due_s": None} == {
        "queue": "load_test",
        "depth": 3,
        "due": 1,
        "deferred": 1,
        "running": 1,
        "dead": 0,
        "oldest_due_s": None,
        "paused": True,
        "live_replicas": 1,
        "not_loaded": None,
    }
    assert stands["system"]["depth"] == stands["media"]["live_replicas"] == 0
    (row,) = [line.split() for line in table.out.splitlines() if line.startswith("load_test")]
    assert row[:6] == ["load_test", "3", "1", "1", "1", "0"]
    # In no order: a running job goes behind those that are due when its lease is renewed.
    assert {job["id"]: (job["state"], job["tries"]) for job in show.data["jobs"]} == {
        runs: ("running", 1),
        due: ("due", 0),
        deferred: ("deferred", 0),
    }
    assert [job["id"] for job in show.data["jobs"] if job["due_in_s"] is None] == [runs]
    assert (show.data["max_jobs"], show.data["max_tries"]) == (30, 2)
    assert "failure_task" in page.out
    assert deferred in page.out
    assert declined.code == 1
    assert "Remove the jobs that wait in load_test? It has 3 jobs" in declined.err

    # A worker looks for jobs twice a second at least.
    await asyncio.sleep(max(0, asked + 1.2 - monotonic()))
    assert await job_of(producer, due).status() == JobStatus.queued

    purge = await cli("queue purge load_test --yes --json")
    assert (purge.code, purge.data) == (0, {"queue": "load_test", "removed": 2})
    assert await producer.zrange(LOAD_TEST, 0, -1) == [runs.encode()]
    assert await producer.exists(*(keys.JOB + job_id for job_id in (runs, due, deferred))) == 1
    assert await job_of(producer, runs).status() == JobStatus.in_progress

    waiting = await enqueue(producer, "light_io_task", 0)
    resume = await cli("queue resume load_test")
    assert (resume.code, resume.out) == (0, "load_test is served\n")
    assert (await job_of(producer, waiting).result(timeout=10, poll_delay=0.05))["bytes"]
    abort, empty = await cli.each(f"job abort {runs}", "queue purge media --yes")
    assert abort.code == 0
    assert (empty.code, empty.out) == (0, "0 jobs removed from media\n")


# -- jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_a_job_of_a_stock_producer(cli: Cli, producer: ArqRedis) -> None:
    job_id = await enqueue(producer, "light_cpu_task", queue=LOAD_TEST, rounds=1000)
    result = await cli(f"job result {job_id} --timeout 10 --json")
    assert result.code == 0
    assert result.data["success"]
    assert result.data["result"] == await job_of(producer, job_id).result(timeout=1)

    status, table, text, again, abort = await cli.each(
        f"job status {job_id} --json",
        f"job status {job_id} --queue load_test",
        f"job result {job_id}",
        f"job enqueue light_cpu_task --id {job_id}",
        f"job abort {job_id}",
    )
    assert {answer.code for answer in (status, table, text)} == {0}
    known = {"id": job_id, "status": "complete", "queue": "load_test", "tries": 1, "due": None, "success": True}
    assert known.items() <= status.data.items()
    assert (status.data["function"], status.data["args"], status.data["kwargs"]) == (
        "light_cpu_task",
        [],
        {"rounds": 1000},
    )
    assert "complete" in table.out
    assert json.loads(text.out) == result.data["result"]
    again.refuses(f"job {job_id} exists already", code=1)
    abort.refuses(f"job {job_id} ended before it was aborted", code=1)
    assert await producer.zscore(keys.ABORT, job_id) is None


@pytest.mark.usefixtures("served")
async def test_jobs_are_enqueued_and_waited_for(cli: Cli) -> None:
    named = "n" * 100  # longer than a line of a screen
    waited, failed, plain, deferred, document = await cli.each(
        "job enqueue system_health_check --wait --json",
        """job enqueue failure_task --wait --kwargs {"message":"asked"}""",
        f"job enqueue light_io_task 0 --id {named}",
        "job enqueue light_io_task --defer 3600 --id later",
        "job enqueue light_io_task --json -- -1",
    )
    assert waited.code == 0
    assert waited.data["result"]["redis_version"]
    assert failed.code == 1
    assert failed.err.endswith("failed: LoadTestError('asked')\n")
    assert (plain.code, plain.out) == (0, f"{named}\n")
    assert (document.data["queue"], document.data["task"]) == ("load_test", "light_io_task")
    assert deferred.code == 0

    result, error, status = await cli.each(
        f"job result {named} --timeout 10",
        f"job result {document.data['id']} --timeout 10 --json",
        "job result later",
    )
    assert json.loads(result.out)["bytes"]
    assert error.code == 1
    assert error.data["error"] == "ValueError('delay_s is -1, it must be from 0 to 300')"
    assert error.err.endswith("failed: ValueError('delay_s is -1, it must be from 0 to 300')\n")
    status.refuses("job later has no result yet: it is deferred", code=1)
    abort = await cli("job abort later --json")
    assert (abort.code, abort.data) == (0, {"id": "later", "aborted": True})


@pytest.mark.usefixtures("served")
async def test_a_job_is_aborted_whether_it_waits_or_runs(cli: Cli, producer: ArqRedis) -> None:
    runs = await enqueue_running(producer)
    async with paused(producer, LOAD_TEST):
        waits = await enqueue(producer, "light_io_task", 60)
        running, early = await cli.each(f"job abort {runs}", f"job abort {waits} --timeout 0")
        assert (running.code, running.out) == (0, f"job {runs} is aborted\n")
        early.refuses(f"job {waits} is queued. A worker of its queue will abort it.", code=1)
    waiting, result, status = await cli.each(
        f"job abort {waits}", f"job result {runs}", f"job status {waits} --queue load_test --json"
    )
    assert (waiting.code, waiting.out) == (0, f"job {waits} is aborted\n")
    result.refuses(f"job {runs} failed: CancelledError()", code=1)
    assert status.code == 0
    assert await producer.zcard(keys.ABORT) == 0


@pytest.mark.usefixtures("served")
async def test_a_job_that_has_ended_runs_again(cli: Cli, producer: ArqRedis) -> None:
    failed = await enqueue(producer, "failure_task", 1, "once", _job_try=3)  # one more than it has
    done = await enqueue(producer, "light_io_task", 0)
    assert [answer.code for answer in await cli.each(*(f"job result {j} --timeout 9" for j in (failed, done)))] == [
        1,
        0,
    ]
    async with paused(producer, LOAD_TEST):
        retried, document = await cli.each(f"job retry {failed}", f"job retry {done} --json")
        assert (retried.code, retried.out) == (0, f"job {failed} is enqueued again in load_test\n")
        assert (document.code, document.data) == (0, {"id": done, "queue": "load_test"})
        status, twice = await cli.each(f"job status {failed} --json", f"job retry {failed}")
        assert (status.data["status"], status.data["tries"], status.data["args"]) == ("queued", 0, [1, "once"])
        twice.refuses(f"job {failed} is queued: only a job that has ended can run again", code=1)
    # It has all of its tries again, of which the second is the one that works.
    assert (await job_of(producer, failed).result(timeout=10, poll_delay=0.05))["job_try"] == 2
    assert (await job_of(producer, done).result(timeout=10, poll_delay=0.05))["bytes"]


@pytest.mark.usefixtures("served")
async def test_dead_letters_are_looked_at_retried_and_discarded(cli: Cli, producer: ArqRedis) -> None:
    await admin.discard(producer, LOAD_TEST, await admin.dead_ids(producer, LOAD_TEST))
    again = await enqueue(producer, "failure_task", 0, "again", _job_try=3)
    always = await enqueue(producer, "failure_task", 0, "always")

    async def died() -> bool:
        return bool(await producer.zcard(keys.dead(LOAD_TEST)) == 2)

    await eventually(died)
    ls, table, letter, page, both, nobody = await cli.each(
        "dead ls --json",
        "dead ls --queue load_test",
        f"dead show {always} --json",
        f"dead show {always}",
        f"dead retry {again} --all",
        "dead discard nobody",
    )
    assert {answer.code for answer in (ls, table, letter, page)} == {0}
    reasons = {found["id"]: (found["queue"], found["reason"], found["tries"]) for found in ls.data}
    assert reasons == {again: ("load_test", "tries exhausted", 2), always: ("load_test", "failed", 2)}
    assert "failure_task" in table.out
    assert (letter.data[0]["args"], letter.data[0]["error"]) == ([0, "always"], "LoadTestError('always')")
    assert "Traceback (most recent call last)" in page.out
    both.refuses("name jobs by their ids, or choose all with --all")
    nobody.refuses("no dead letter nobody in load_test, media, system", code=1)

    retried = await cli(f"dead retry {always} --json")
    assert (retried.code, retried.data) == (0, {"retried": [always], "left": []})
    await eventually(died)
    (second,) = (await cli(f"dead show {always} --json")).data
    assert second["tries"] == 2, "it had all of its tries again"
    assert second["died_ms"] > letter.data[0]["died_ms"]
    discarded = await cli("dead discard --all")
    assert (discarded.code, discarded.out) == (0, "2 dead letters deleted\n")
    assert (await cli("dead ls")).out == "no dead letters\n"


@pytest.mark.usefixtures("served")
async def test_a_pickle_is_shown_and_not_loaded(cli: Cli, producer: ArqRedis, tmp_path: Path) -> None:
    payload = pickle.dumps({"t": None, "f": "light_io_task", "a": (Canary(tmp_path / "canary"),), "k": {}, "et": 0})
    await producer.set(keys.JOB + "poison", payload)
    async with paused(producer, LOAD_TEST):
        await producer.zadd(LOAD_TEST, {"poison": 0})
        waits, queue = await cli.each("job status poison", "queue show load_test --json")
        waits.refuses("job poison cannot be read here: payload is a pickle, but WORKER_SERIALIZER is msgpack", code=1)
        assert [job["function"] for job in queue.data["jobs"]] == [None]
    result = await cli("job result poison --timeout 10")
    assert "payload is a pickle, but WORKER_SERIALIZER is msgpack" in result.err
    await eventually(lambda: producer.exists(keys.RESULT + "poison"))
    letter, status, retry = await cli.each("dead show poison --json", "job status poison --json", "job retry poison")
    (found,) = letter.data
    assert (found["reason"], base64.urlsafe_b64decode(found["payload"])) == ("undecodable", payload)
    assert status.code == 0, status.err
    assert status.data["function"] == "<unknown>"
    retry.refuses("could not be read, so its task is not known", code=1)
    assert not (tmp_path / "canary").exists()
    assert (await cli("dead discard poison")).code == 0


async def test_what_is_too_large_is_not_sent(cli: Cli) -> None:
    answer = await cli(
        "job",
        "enqueue",
        "light_io_task",
        "--kwargs",
        '{"delay_s": "%s"}' % ("x" * 5000),
        WORKER_MAX_PAYLOAD_BYTES="4096",
    )
    answer.refuses(
        'unable to serialize job "light_io_task": payload of 5,',
        "larger than 4,096 bytes, which is WORKER_MAX_PAYLOAD_BYTES",
    )


# -- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_load_of_each_kind(cli: Cli, producer: ArqRedis) -> None:
    io, cpu, memory, failure, text = await cli.each(
        "load-test io -n 40 --json",
        "load-test cpu -n 10 --rate 20 --json",
        "load-test memory -n 5 --json",
        "load-test failure -n 3 --json",
        "load-test io -n 20 --wait",
    )
    for answer, kind, n in ((io, "io", 40), (cpu, "cpu", 10), (memory, "memory", 5), (failure, "failure", 3)):
        assert (answer.code, answer.err) == (0, "")
        report = answer.data
        assert (report["kind"], report["jobs"], report["done"], report["missing"]) == (kind, n, n, 0)
        assert (report["failed"], report["retries"]) == ((n, n) if kind == "failure" else (0, 0))
        assert report["run_ms"]["p50"] <= report["run_ms"]["max"] <= report["total_ms"]["max"]
    assert sum(io.data["replicas"].values()) == 40
    assert "unknown" not in io.data["replicas"]
    assert failure.data["wait_ms"] is None
    assert cpu.data["total_ms"]["p50"] < cpu.data["jobs"] / cpu.data["jobs_per_s"] * 1000
    assert (text.code, text.err) == (0, "")
    assert "enqueue to finish" in text.out
    assert "100%" in text.out


@pytest.mark.usefixtures("served")
async def test_load_that_does_not_end(cli: Cli, producer: ArqRedis) -> None:
    async with paused(producer, LOAD_TEST):
        sent, late = await cli.each("load-test io -n 3 --no-wait --json", "load-test io -n 2 --timeout 0.2 --json")
        assert (sent.code, sent.data) == (0, {"kind": "io", "jobs": 3})
        assert late.code == 1
        assert (late.data["jobs"], late.data["done"], late.data["missing"]) == (2, 0, 2)
        assert late.err == "2 of 2 jobs had not ended 0.2 s after the last was sent\n"
        assert await producer.zcard(LOAD_TEST) == 5

        process = await cli.start("load-test", "io", "-n", "4", "--json")
        async with asyncio.timeout(20):
            while await producer.zcard(LOAD_TEST) < 9:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
            process.send_signal(signal.SIGINT)
            stopped = await ended(process)
        assert (stopped.code, stopped.err) == (130, "")
        assert (stopped.data["jobs"], stopped.data["missing"]) == (4, 4)
        purge = await cli("queue purge load_test --yes")
        assert purge.out == "9 jobs removed from load_test\n"


@pytest.mark.usefixtures("served")
async def test_load_that_fails(cli: Cli) -> None:
    tmp = Path(cli.environment["WORKER_DATA_DIR"]) / "tmp"
    tmp.mkdir(exist_ok=True)
    aside = tmp.rename(tmp.with_name("aside"))
    tmp.touch()
    try:
        answer = await cli("load-test io -n 2")
    finally:
        tmp.unlink()
        aside.rename(tmp)
    assert answer.code == 1
    assert "2 of 2 jobs failed, the first with FileExistsError" in answer.err
