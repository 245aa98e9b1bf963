"""Redis's users, as redis/users.acl.template has them: each may do what it is for, and nothing else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from arq import func
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import serialize_job
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, ResponseError

from aegis_worker import NewJob, Producer, Worker, enqueue_many
from aegis_worker.redis.pool import explain
from aegis_worker.settings import Settings
from ops import local
from ops.secrets import passwords
from tests.conftest import eventually, free_port
from tests.integration.conftest import QUEUE, echo, result

WORKER, PRODUCER, MONITOR, ADMIN = passwords.USERS


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server with the users of a stack; their passwords are in a folder of the folder."""
    port = free_port()
    passwords.ensure(folder / "secrets")
    command = local.server_command(port, folder, folder / "secrets" / passwords.ACL)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    local._wait(process, port, folder / "log")
    return process, port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A server's port, and the folder of its users' passwords."""
    folder = tmp_path_factory.mktemp("acl")
    process, port = start_server(folder)
    yield port, folder / "secrets"
    process.terminate()
    process.wait()


@pytest.fixture
async def users(server: tuple[int, Path]) -> AsyncIterator[dict[str, ArqRedis]]:
    """A connection as each user, and one that has not logged in; there is a job and a result."""
    port, folder = server
    logins = {user: (user, (folder / name).read_text()) for user, name in passwords.USERS.items()}
    pools = {
        user: await create_pool(RedisSettings(port=port, username=name, password=password))
        for user, (name, password) in logins.items()
    }
    pools["nobody"] = ArqRedis(port=port)
    await pools[ADMIN].flushall()
    await pools[ADMIN].set("arq:result:done", b"result")
    await pools[ADMIN].set("arq:job:there", serialize_job("echo", (1,), {}, None, int(time.time() * 1000)))
    await pools[ADMIN].zadd(QUEUE, {"there": 9e12})
    yield pools
    for pool in pools.values():
        await pool.aclose()


#: a command of each group, and who may run it besides the admin
COMMANDS: list[tuple[tuple[Any, ...], set[str]]] = [
    # what each is for
    (("PING",), {WORKER, PRODUCER, MONITOR}),
    (("INFO", "memory"), {WORKER, PRODUCER, MONITOR}),
    (("TIME",), {WORKER, MONITOR}),
    (("ZADD", QUEUE, 1, "id"), {WORKER, PRODUCER}),
    (("ZCARD", QUEUE), {WORKER, PRODUCER, MONITOR}),
    (("ZRANGE", QUEUE, 0, -1), {WORKER, PRODUCER, MONITOR}),
    (("SET", "arq:job:id", "x"), {WORKER, PRODUCER}),
    (("GET", "arq:job:there"), {WORKER, PRODUCER}),
    (("GET", "arq:result:done"), {WORKER, PRODUCER}),
    (("EXISTS", "arq:in-progress:there"), {WORKER, PRODUCER, MONITOR}),
    (("ZADD", "arq:abort", 1, "id"), {WORKER, PRODUCER}),
    (("GET", "worker:health:test:r0"), {WORKER, MONITOR}),
    (("ZRANGE", "worker:replicas:test", 0, -1), {WORKER, MONITOR}),
    (("ZADD", "worker:bell:test", 0, ""), {WORKER, PRODUCER}),
    (("BZPOPMIN", "worker:bell:test", 0.01), {WORKER}),
    (("SET", "worker:bell:test", "broken"), {WORKER}),
    (("PUBSUB", "NUMSUB", "__keyspace@0__:" + QUEUE), {WORKER}),
    (("SET", QUEUE, "broken"), {WORKER}),
    (("SET", "arq:abort", "broken"), {WORKER}),
    (("EVAL", "return 1", 0), {WORKER, PRODUCER}),
    (("SUBSCRIBE", "__keyspace@0__:" + QUEUE), {WORKER}),
    (("SLOWLOG", "LEN"), {MONITOR}),
    (("INCR", "app:mine"), {WORKER}),
    # keys that are nobody's business
    (("SET", "arq:result:id", "forged"), {WORKER}),
    (("SET", "arq:in-progress:there", "stolen"), {WORKER}),
    (("DEL", "arq:job:there"), {WORKER}),
    (("SET", "worker:paused:test", 1), {WORKER}),
    (("ZCARD", "worker:dead:test"), {WORKER, MONITOR}),
    (("HGETALL", "worker:letters:test"), {WORKER}),
    (("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "arq:result:id"), {WORKER}),
    (("SET", "elsewhere", 1), set()),
    (("GET", "elsewhere"), set()),
    (("PUBLISH", "__keyspace@0__:" + QUEUE, "zadd"), set()),
    (("SUBSCRIBE", "elsewhere"), set()),
    # the server as a whole
    *(
        (command, set())
        for command in [
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("FLUSHDB",),
            ("SWAPDB", 0, 1),
            ("CONFIG", "GET", "*"),
            ("CONFIG", "SET", "maxmemory", 0),
            ("ACL", "LIST"),
            ("ACL", "SETUSER", "default", "on"),
            ("CLIENT", "LIST"),
            ("CLIENT", "KILL", "TYPE", "pubsub"),
            ("MONITOR",),
            ("SAVE",),
            ("BGSAVE",),
            ("BGREWRITEAOF",),
            ("REPLICAOF", "NO", "ONE"),
            ("FAILOVER", "ABORT"),
            ("CLUSTER", "INFO"),
            ("MODULE", "LIST"),
            ("FUNCTION", "FLUSH"),
            ("SCRIPT", "FLUSH"),
            ("SLOWLOG", "RESET"),
            ("LATENCY", "RESET"),
            ("SORT", QUEUE),
            ("MIGRATE", "localhost", 1, "arq:job:there", 0, 1),
            ("RESTORE", "arq:job:id", 0, b"x"),
            ("SHUTDOWN", "ABORT"),
        ]
    ),
]


@pytest.mark.parametrize(
    ("command", "allowed"), [pytest.param(*row, id=" ".join(map(str, row[0]))) for row in COMMANDS]
)
async def test_who_may_do_what(users: dict[str, ArqRedis], command: tuple[Any, ...], allowed: set[str]) -> None:
    for user in (WORKER, PRODUCER, MONITOR):
        try:
            await users[user].execute_command(*command)
            refused = False
        except NoPermissionError:
            refused = True
        except ResponseError as error:
            refused = "permissions" in str(error)  # from within a script
        assert refused == (user not in allowed), user


@pytest.mark.parametrize("command", [("PING",), ("INFO",), ("GET", "arq:job:there"), ("CONFIG", "GET", "*")], ids=str)
async def test_nobody_does_anything_without_a_login(users: dict[str, ArqRedis], command: tuple[str, ...]) -> None:
    with pytest.raises((AuthenticationError, ConnectionError)):
        await users["nobody"].execute_command(*command)


async def test_a_wrong_password_is_refused(server: tuple[int, Path]) -> None:
    for user in (*passwords.USERS, "default"):
        redis = Redis(port=server[0], username=user, password="guess")
        with pytest.raises(AuthenticationError):
            await redis.ping()
        await redis.aclose()


async def test_the_admin_may_do_everything(users: dict[str, ArqRedis]) -> None:
    assert (await users[ADMIN].acl_whoami()) == ADMIN
    assert await users[ADMIN].config_get("maxmemory-policy")
    assert await users[ADMIN].keys("*")


async def test_what_a_user_may_not_do_is_said(users: dict[str, ArqRedis]) -> None:
    with pytest.raises(NoPermissionError) as caught:
        await users[MONITOR].delete(QUEUE)
    said = explain(caught.value, Settings(_env_file=None, REDIS_USERNAME=MONITOR))
    assert said.startswith("Redis at localhost:6379 does not permit this to the user monitor: ")


async def test_worker_and_producer_do_their_work(users: dict[str, ArqRedis], server: tuple[int, Path]) -> None:
    """Through and through: what a stock producer does, ours, an abort, and all that a worker does with it."""
    producer = users[PRODUCER]
    password = (server[1] / passwords.USERS[WORKER]).read_text()
    settings = RedisSettings(port=server[0], username=WORKER, password=password)
    job = await producer.enqueue_job("echo", 1, _queue_name=QUEUE)
    doomed = await producer.enqueue_job("echo", 2, _queue_name=QUEUE, _defer_by=3600)
    many = await enqueue_many(producer, [NewJob("echo", (n,), unique=str(n)) for n in range(3)], queue_name=QUEUE)
    own = Producer(producer)
    many.append(await own.enqueue(NewJob("echo", (3,)), queue_name=QUEUE))
    own.close()
    worker = Worker([func(echo, name="echo")], queue_name=QUEUE, redis_settings=settings, handle_signals=False)
    task = worker.loop.create_task(worker.async_run())
    assert job is not None
    assert doomed is not None
    assert [await result(each) for each in (job, *many) if each] == [1, 0, 1, 2, 3]
    await eventually(lambda: worker._parts.listener.proved)
    assert await doomed.abort(timeout=5, poll_delay=0.01)
    assert await job.status() == "complete"
    await worker.close()
    await task


async def test_a_producer_that_may_not_ring_enqueues_all_the_same(
    users: dict[str, ArqRedis], server: tuple[int, Path]
) -> None:
    """As one does whose rights are of an older version."""
    rights = {"keys": ["arq:*"], "commands": ["+exists", "+set", "+zadd", "+eval", "+evalsha"]}
    await users[ADMIN].acl_setuser("older", enabled=True, passwords=["+old"], **rights)
    older = ArqRedis(port=server[0], username="older", password="old")
    (job,) = await enqueue_many(older, [NewJob("echo")], queue_name=QUEUE)
    assert job is not None
    assert await users[ADMIN].zscore(QUEUE, job.job_id)
    assert not await users[ADMIN].exists("worker:bell:test")
    await users[ADMIN].acl_deluser("older")
    await older.aclose()


async def test_what_is_on_disk_is_read_whole_by_a_server_with_these_users(tmp_path: Path) -> None:
    """Redis checks the transactions of its append-only file against the user `default`."""
    for start in range(2):
        process, port = start_server(tmp_path)
        password = (tmp_path / "secrets" / passwords.USERS[PRODUCER]).read_text()
        pool = await create_pool(RedisSettings(port=port, username=PRODUCER, password=password))
        if start == 0:
            await pool.enqueue_job("echo", _job_id="kept", _queue_name=QUEUE)
        assert await pool.zcard(QUEUE) == 1
        assert await pool.exists("arq:job:kept") == 1
        await pool.aclose()
        process.kill()
        process.wait()
    assert "NOPERM" not in (tmp_path / "log").read_text()
