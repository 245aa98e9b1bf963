"""The library's and the producers' pages: their examples run in an environment that has the library alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import arq.worker
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import func
from redis.exceptions import NoPermissionError

import aegis_worker
from aegis_worker.worker.options import parameters
from tests.conftest import ROOT, eventually, free_port
from tests.integration.conftest import QUEUE, MakeWorker
from tests.integration.library.conftest import LIBRARY, Environment, copy_library, running, variables
from tests.integration.library.pages import commands, execute, files, page, snippets, table, write


def test_the_page_of_the_library_names_all_that_is_public() -> None:
    assert sorted(table("docs/library.md", "name")) == sorted(aegis_worker.__all__)
    ours = parameters(aegis_worker.Worker) - set(inspect.signature(arq.worker.Worker).parameters)
    assert sorted(table("docs/library.md", "option")) == sorted(ours - {"self"})
    assert table("docs/producers.md", "field") == [
        "function",
        "args",
        "kwargs",
        "job_id",
        "unique",
        "defer_by",
        "defer_until",
        "expires",
    ]
    assert set(table("docs/producers.md", "field")) == set(aegis_worker.NewJob._fields)


def test_it_installs_as_the_page_says(full: Environment, tmp_path: Path) -> None:
    copy_library(tmp_path / "library")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", tmp_path]
    for command in (["init", "-q"], ["add", "library"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    *installs, _, _, _ = commands("docs/library.md")
    assert len(installs) == 3
    for command in installs:
        subprocess.run([full.python, "-m", "pip", "uninstall", "-qy", "aegis-worker"], check=True)
        run = command.replace("git+https://git.example.org/team/aegis-worker.git", f"git+file://{tmp_path}")
        subprocess.run(
            ["bash", "-euc", run],
            cwd=tmp_path,
            env=full.variables(PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_QUIET="1"),
            check=True,
        )
        assert full.run("-c", "from aegis_worker import Settings").returncode == 0, command


async def test_a_web_application_enqueues_and_reads_results(
    bare: Environment, tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    """The page's WSGI application, on a real server, and the page's worker; both have nothing but the library."""
    write(tmp_path, files("docs/library.md") | files("docs/producers.md"))
    await serves_orders(
        tmp_path, bare, redis_server, [bare.python, "web.py"], orders="/", job="/{}", busy={"error": "being billed"}
    )


async def test_a_fastapi_application_does_as_well(
    bare: Environment, tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    write(tmp_path, files("docs/library.md") | files("docs/producers.md"))
    server = [sys.executable, "-c", "import os, uvicorn; uvicorn.run('api:app', port=int(os.environ['PORT']))"]
    busy = {"detail": "this order is being billed"}
    await serves_orders(tmp_path, bare, redis_server, server, orders="/orders", job="/jobs/{}", busy=busy)


def test_the_fastapi_application_has_the_right_types(tmp_path: Path) -> None:
    """An editor completes our names and arguments in it, also in what no request of the test reaches."""
    write(tmp_path, files("docs/producers.md"))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--follow-imports=silent"]
    lax = [
        "--allow-untyped-decorators",
        "--allow-subclassing-any",
        "--config-file=",
        "--cache-dir",
        ROOT / ".mypy_cache",
    ]
    done = subprocess.run(
        [*mypy, *lax, tmp_path / "api.py"],
        env={"PATH": os.environ["PATH"], "MYPYPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


async def serves_orders(
    folder: Path,
    environment: Environment,
    redis_server: RedisSettings,
    server: list[str | Path],
    *,
    orders: str,
    job: str,
    busy: dict[str, str],
) -> None:
    """Start the page's worker and a web application, and send it orders: one is billed, one fails, one is refused."""
    port = free_port()
    env = environment.variables(**variables(redis_server), PORT=str(port))
    if path := os.environ.get("PYTHONPATH"):  # where a web framework may be
        env["PYTHONPATH"] = path if server[0] == sys.executable else ""

    async def ask(path: str, data: object = None) -> tuple[int, Any]:
        request = Request(f"http://127.0.0.1:{port}{path}", headers={"Content-Type": "application/json"})
        request.data = None if data is None else json.dumps(data).encode()

        def send() -> tuple[int, Any]:
            try:
                with urlopen(request, timeout=10) as answer:
                    return answer.status, json.load(answer)
            except HTTPError as error:
                return error.code, json.load(error)

        return await asyncio.to_thread(send)

    async def answers() -> bool:
        with contextlib.suppress(URLError):
            return (await ask(job.format("none")))[0] == 404
        return False

    async def ended(job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = {}

        async def look() -> bool:
            nonlocal answer
            code, answer = await ask(job.format(job_id))
            return code == 200 and "status" not in answer

        await eventually(look)
        return answer

    async with running(*server, cwd=folder, env=env, log=folder / "web.log"):
        await eventually(answers)
        good, bad = {"number": 7, "items": [{"price": 3}, {"price": 4}]}, {"number": 8, "items": []}
        code, first = await ask(orders, good)
        assert code == 202
        assert await ask(orders, good) == (409, busy), "it waits"
        _, second = await ask(orders, bad)
        worker = [environment.python, *commands("docs/library.md")[-3].split()[1:]]
        async with running(
            *worker, cwd=folder, env=environment.variables(**variables(redis_server)), log=folder / "log"
        ):
            assert await ended(first["job"]) == {"answer": {"number": 7, "total": 7}}
            assert (await ask(orders, good))[0] == 202, "it is over"
            assert await ended(second["job"]) == {"error": "nothing to bill"}, (folder / "log").read_text()


async def test_the_producers_page_runs(
    redis: ArqRedis, redis_server: RedisSettings, serve: MakeWorker, tmp_path: Path
) -> None:
    space: dict[str, Any] = {}
    for code in snippets("docs/producers.md"):
        execute(code, space)
    serializer = space["serializer"]
    packed = {"job_serializer": serializer.dumps, "job_deserializer": serializer.loads}

    async def health(ctx: dict[str, Any]) -> dict[str, str]:
        return {"redis_version": "7"}

    async def check(ctx: dict[str, Any], url: str) -> str:
        if not url:
            raise ValueError("no URL")
        return url

    functions = [func(health, name="system_health_check"), func(check, name="check_url")]
    await serve(functions=functions, queue_name="arq:queue:system", **packed)
    assert await space["main"]("127.0.0.1", redis_server.port, redis_server.password) == {"redis_version": "7"}

    settings = dataclasses.replace(redis_server, username="producer")
    producer = await create_pool(settings, **packed)
    assert await space["enqueue"](producer, ["http://a", "http://a", "http://b"]) == 2
    await space["serve"](producer, "http://c")

    async def looked(*arguments: object) -> dict[str, Any]:
        job = await producer.enqueue_job("check_url", *arguments, _queue_name="arq:queue:system")
        assert job is not None
        with contextlib.suppress(ValueError):
            await job.result(timeout=10, poll_delay=0.02)
        answer: dict[str, Any] = await space["look"](producer, job.job_id)
        return answer

    assert await looked("http://d") == {"success": True, "answer": "http://d"}
    assert await looked("") == {"success": False, "answer": "ValueError('no URL')"}
    assert await space["look"](producer, "none") == {"status": "not_found"}

    with pytest.raises(NoPermissionError):
        await producer.all_job_results()
    await producer.enqueue_job("check_url", "later", _queue_name="arq:queue:system", _defer_by=60)
    assert [job.args for job in await producer.queued_jobs(queue_name="arq:queue:system")] == [("later",)]
    await producer.aclose()

    (tmp_path / "keys").write_text(f"{'k' * 32}\n{'o' * 32}\n")
    signed = space["signing_serializer"](tmp_path / "keys")
    old = aegis_worker.Serializer(signing_keys=["o" * 32])
    record = {"f": "f", "a": (1,), "k": {}, "t": None, "et": 0}
    assert signed.loads(old.dumps(record)) == signed.loads(signed.dumps(record)) == record
    with pytest.raises(aegis_worker.PayloadError, match="not signed"):
        signed.loads(serializer.dumps(record))
    # What another language writes.
    (written,) = re.findall(r'`(\{"f": .*?\})`', page("docs/producers.md").replace("\n", " "))
    assert aegis_worker.Serializer("json").loads(written.encode())["f"] == "check_url"


async def test_a_result_of_classes_that_are_not_registered_here(
    redis: ArqRedis, serve: MakeWorker, bare: Environment, redis_server: RedisSettings
) -> None:
    """What the producers' page says: a status needs no class, results and infos do, arguments' included."""
    serializer = aegis_worker.Serializer()
    redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
    await serve(job_serializer=serializer.dumps, job_deserializer=serializer.loads)
    job = await redis.enqueue_job("echo", Cup("tea"), _queue_name=QUEUE)
    assert job is not None
    assert await job.result(timeout=10, poll_delay=0.02) == Cup("tea")
    code = f"""
import asyncio, json
from aegis_worker import Serializer
from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import DeserializationError, Job

async def main():
    load = Serializer().loads
    redis = await create_pool(
        RedisSettings(port={redis_server.port}, username="producer", password={redis_server.password!r})
    )
    job = Job({job.job_id!r}, redis, {QUEUE!r}, load)
    said = [(await job.status()).value]
    for look in (job.result, job.result_info, job.info):
        try:
            await look()
        except DeserializationError as error:
            said.append(str(error.__cause__))
    return said

print(json.dumps(asyncio.run(main())))
"""
    assert bare.says(code) == ["complete", *["no class Cup is registered here"] * 3]


@aegis_worker.register
@dataclass
class Cup:
    of: str


async def test_the_librarys_readme_runs(redis: ArqRedis, redis_server: RedisSettings, serve: MakeWorker) -> None:
    change, code = snippets("library/README.md")
    execute(change, {})
    space: dict[str, Any] = {}
    execute(code, space)

    async def bill(ctx: dict[str, Any], order: dict[str, Any]) -> int:
        return sum(item["price"] for item in order["items"])

    packed = aegis_worker.Serializer()
    await serve(
        functions=[func(bill, name="bill")],
        queue_name="arq:queue:shop",
        job_serializer=packed.dumps,
        job_deserializer=packed.loads,
    )
    assert await space["main"](redis_server) == 3


async def test_a_project_of_ones_own_as_the_page_says(
    full: Environment, tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    write(tmp_path, files("docs/library.md"))
    serve_it, ask = commands("docs/library.md")[-2:]
    check, serve_it = serve_it.splitlines()[1:]
    env = full.variables(**variables(redis_server), AEGIS_PROJECT="shop.project")
    assert ask.splitlines()[0] == "export AEGIS_PROJECT=shop.project"
    checked = await asyncio.create_subprocess_exec(*check.split(), cwd=tmp_path, env=env)
    assert await checked.wait() == 0
    async with running(*serve_it.split(), cwd=tmp_path, env=env, log=tmp_path / "log") as worker:
        asked = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            ask.partition("\n")[2].split("\n", 1)[1],
            cwd=tmp_path,
            env=env,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            out, _ = await asked.communicate()
        assert (asked.returncode, out.decode().strip()) == (0, "120.0"), worker.text
        health = ask.splitlines()[1]
        asked = await asyncio.create_subprocess_exec(
            *health.split(), cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asked.communicate()
        assert asked.returncode == 0, out.decode()
        assert "orders" in out.decode()
