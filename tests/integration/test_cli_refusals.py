"""What the command line cannot do is one line on standard error, and an exit code."""

from __future__ import annotations

import asyncio

from arq.connections import ArqRedis

from tests.conftest import free_port
from tests.integration.conftest import Cli


async def test_a_redis_that_is_not_there(cli: Cli) -> None:
    commands = ("health status --json", "queue purge system --yes", "job enqueue system_health_check", "load-test io")
    port = free_port()
    for answer in await cli.each(*commands, REDIS_URL_LOCAL=f"redis://localhost:{port}"):
        answer.refuses(f"Redis at localhost:{port} cannot be reached")


async def test_a_redis_that_is_full(cli: Cli, redis: ArqRedis) -> None:
    await redis.config_set("maxmemory", 1)
    try:
        (await cli("job enqueue system_health_check")).refuses("is full: raise REDIS_MAXMEMORY")
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_login_that_is_refused(cli: Cli) -> None:
    wrong, none, nobody = await asyncio.gather(
        cli("queue ls", REDIS_PASSWORD="wrong"),
        cli("queue ls", REDIS_PASSWORD=""),
        cli("queue ls", REDIS_USERNAME="nobody"),
    )
    for answer in (wrong, none, nobody):
        answer.refuses("refuses the login", "check REDIS_USERNAME and secrets/<ENV>/redis_password")
    assert "wrong " not in wrong.err


async def test_an_unknown_queue(cli: Cli) -> None:
    commands = (
        "worker --queue system --queue no",
        "health probe --queue no",
        "queue show no",
        "queue purge no --yes",
        "task ls --queue no",
        "job enqueue check_url x --queue no",
        "job status x --queue no",
    )
    for answer in await cli.each(*commands):
        answer.refuses("unknown queue no: the queues are load_test, media, system")


async def test_a_task_that_is_not_there_or_takes_something_else(cli: Cli) -> None:
    typo, unlike, arguments, text = await cli.each(
        "job enqueue check_ulr http://x",
        "job enqueue nothing --queue system",
        "job enqueue check_url",
        "job enqueue check_url --kwargs [1]",
    )
    typo.refuses("unknown task check_ulr: did you mean check_url?")
    unlike.refuses("unknown task nothing: the tasks are check_url, cleanup_temp_files, system_health_check")
    arguments.refuses("task check_url does not take these arguments: missing a required argument: 'url'")
    text.refuses("--kwargs [1] is not a JSON object")


async def test_words_that_the_command_line_does_not_have(cli: Cli) -> None:
    commands = {
        "load-test disk": "'disk' is not one of 'io', 'cpu', 'memory', 'failure'",
        "load-test io -n 0": "--jobs",
        "load-test io --rate fast": "--rate",
        "qeue ls": "No such command 'qeue'",
        "job status": "Missing argument 'ID'",
        "job result x --json=yes": "--json",
    }
    for text, answer in zip(commands.values(), await cli.each(*commands), strict=True):
        assert (answer.code, answer.out) == (2, "")
        assert text in " ".join(answer.err.replace("│", "").split())  # it is framed and wrapped


async def test_settings_to_mend_are_named_at_once_with_their_values(cli: Cli) -> None:
    shared, together, queues, worker, no_results = await asyncio.gather(
        cli("health probe", LOG_LEVEL="loud", REDIS_PORT="0", WORKER_MAX_TRIES="many"),
        cli("worker", WORKER_STOP_GRACE_SECONDS="10", WORKER_RETRY_BACKOFF_SECONDS="400"),
        cli("queue ls", WORKER_SYSTEM_MAX_JOBS="0", WORKER_LOAD_TEST_MAX_TRIES="two"),
        cli("worker", WORKER_SYSTEM_MAX_JOBS="0"),
        cli("load-test io", WORKER_LOAD_TEST_KEEP_RESULT="0"),
    )
    assert (shared.code, shared.out) == (2, "")
    assert shared.err.splitlines() == [
        "LOG_LEVEL=loud: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
        "REDIS_PORT=0: Input should be greater than or equal to 1",
        "WORKER_MAX_TRIES=many: Input should be a valid integer, unable to parse string as an integer",
    ]
    assert (together.code, together.out) == (2, "")
    assert "WORKER_JOB_COMPLETION_WAIT=30 must be less than WORKER_STOP_GRACE_SECONDS=10" in together.err
    assert "WORKER_RETRY_BACKOFF_SECONDS=400 must not be more than" in together.err
    assert (queues.code, queues.out) == (2, "")
    assert [line.partition(":")[0] for line in queues.err.splitlines()] == [
        "WORKER_LOAD_TEST_MAX_TRIES=two",
        "WORKER_SYSTEM_MAX_JOBS=0",
    ]
    worker.refuses("WORKER_SYSTEM_MAX_JOBS=0: Input should be greater than 0")
    no_results.refuses("load_test keeps no results to measure: set WORKER_LOAD_TEST_KEEP_RESULT, or use --no-wait")


async def test_a_job_that_nobody_knows(cli: Cli) -> None:
    for answer in await cli.each("job status x", "job result x", "job abort x --json", "job retry x"):
        answer.refuses("there is no job x in load_test, media, system, and no result of it is kept", code=1)
