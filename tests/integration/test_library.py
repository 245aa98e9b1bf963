"""The library alone, from its wheel, in an environment that has nothing else; and its pages, whose examples run there.

No network is needed: what the wheel depends on is copied, file by file, from the environment that the tests run in, and
pip checks that it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, make_dataclass
from datetime import datetime
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zoneinfo import ZoneInfo

import arq.worker
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import DeserializationError, Job, JobStatus, ResultNotFound, SerializationError
from arq.worker import func
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis.exceptions import NoPermissionError

import aegis_worker
from aegis_worker.project import Project
from aegis_worker.queue import admin
from aegis_worker.worker.options import parameters
from tests.conftest import ROOT, copy_checkout, eventually, free_port
from tests.integration.conftest import QUEUE, MakeWorker, echo

LIBRARY = ROOT / "library"
OF_THE_EXTRA = {"pydantic", "pydantic-settings", "python-dotenv", "python-json-logger", "rich", "typer", "uvloop"}


# -- environments ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy_library(folder / "library")  # a build leaves files in the folder that it builds
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, folder / "library"], check=True)
    (built,) = folder.glob("*.whl")
    return built


def copy_library(folder: Path) -> None:
    shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def variables(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", **more}

    def run(self, *arguments: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.folder,
            env=self.variables(**more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def says(self, code: str) -> Any:
        """Run code that prints JSON."""
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def distributions(self) -> set[str]:
        code = (
            "import json; from importlib.metadata import distributions as d; print(json.dumps([x.name for x in d()]))"
        )
        return {canonicalize_name(name) for name in self.says(code)}


def new_environment(folder: Path, wheel: Path, *, extra: str = "", more: Iterable[str] = ()) -> Environment:
    """Make an environment with the wheel and what it depends on, and nothing else but ``more``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    environment = Environment(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in depended_on(requirements(wheel), extra, more):
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:  # no scripts
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(str(file.locate())), site / file)
    install = [sys.executable, "-m", "pip", "--python", environment.python, "install", "-q", "--no-index"]
    name = f"{wheel}[{extra}]" if extra else str(wheel)
    subprocess.run([*install, name], check=True)  # which fails where a dependency is missing
    return environment


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return re.findall("^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)


def depended_on(required: Iterable[str], extra: str, more: Iterable[str]) -> list[Distribution]:
    """Return the installed distributions that these requirements lead to."""
    found: dict[str, Distribution] = {}
    ahead = [(Requirement(text), {"", extra}) for text in required] + [(Requirement(text), {""}) for text in more]
    while ahead:
        requirement, extras = ahead.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        new = canonicalize_name(requirement.name) not in found
        there = found.setdefault(canonicalize_name(requirement.name), distribution(requirement.name))
        if new or requirement.extras:
            ahead += [(Requirement(text), {"", *requirement.extras}) for text in there.requires or ()]
    return list(found.values())


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and its dependencies, without any extra."""
    return new_environment(tmp_path_factory.mktemp("bare") / "venv", wheel)


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the extra, and with what builds it from source."""
    folder = tmp_path_factory.mktemp("full") / "venv"
    return new_environment(folder, wheel, extra="project", more=("pip", "setuptools"))


# -- the wheel ---------------------------------------------------------------------------------------------------------


def test_the_wheel_has_all_of_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "aegis_worker"],
        cwd=LIBRARY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == {name for name in listed if (LIBRARY / name).exists()}
    assert {"aegis_worker/py.typed", "aegis_worker/queue/lua/claim.lua"} <= found
    assert {"licenses/LICENSE", "METADATA", "entry_points.txt"} <= about


def test_nothing_else_is_in_the_bare_environment(bare: Environment) -> None:
    there = bare.distributions
    assert {"aegis-worker", "arq", "redis", "hiredis", "msgspec"} <= there
    assert not there & {*OF_THE_EXTRA, "my-app", "httpx", "pip", "setuptools", "pytest"}
    path = bare.says("import json, sys; print(json.dumps(sys.path))")
    assert not [
        entry for entry in path if str(ROOT) in entry or ("site-packages" in entry and str(bare.folder) not in entry)
    ]
    code = "import aegis_worker, json; print(json.dumps([n for n in aegis_worker.__all__ if hasattr(aegis_worker, n)]))"
    assert bare.says(code.replace("hasattr(aegis_worker, n)", "n != 'Settings' and hasattr(aegis_worker, n)")) == [
        name for name in aegis_worker.__all__ if name != "Settings"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "from aegis_worker import Settings"),
        ("-c", "import aegis_worker; aegis_worker.Settings"),
        ("-c", "import aegis_worker.project"),
        ("-m", "aegis_worker", "worker"),
    ],
    ids=" ".join,
)
def test_what_needs_the_extra_says_so(bare: Environment, arguments: tuple[str, ...]) -> None:
    done = bare.run(*arguments)
    assert done.returncode
    assert "with its extra, as aegis-worker[project]" in done.stderr.splitlines()[-1], done.stderr


def test_the_command_line_says_so_in_one_line(bare: Environment) -> None:
    done = subprocess.run([bare.folder / "bin" / "aegis-worker", "health"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("The command line cannot be used without the module typer: install")


# -- a stock arq project -----------------------------------------------------------------------------------------------

SHOP = Path(__file__).parent / "stock" / "shop.py"
STOCK_IMPORT, OUR_IMPORT = "from arq import Worker, run_worker", "from aegis_worker import Worker, run_worker"


@dataclass(frozen=True, slots=True)
class Started:
    """A program that runs until its block ends, and what it has said by then."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()


@asynccontextmanager
async def running(*command: str | Path, cwd: Path, env: dict[str, str], log: Path) -> AsyncIterator[Started]:
    """Start a program, and end it by SIGTERM, as a container's or systemd's stop does; it has to end in order."""
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*map(str, command), cwd=cwd, env=env, stdout=out, stderr=out)
    try:
        yield Started(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(20):
            await process.wait()
    assert process.returncode in (0, -signal.SIGTERM), (command, process.returncode)


def variables(redis_server: RedisSettings) -> dict[str, str]:
    return {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis_server.port),
        "REDIS_PASSWORD": str(redis_server.password),
        "REDIS_URL": f"redis://127.0.0.1:{redis_server.port}",
    }


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisSettings) -> Iterator[Callable[..., Any]]:
    """Starts the stock project with one import from either library; and has its classes here, for pickle."""
    monkeypatch.syspath_prepend(str(SHOP.parent))
    for name, value in variables(redis_server).items():
        monkeypatch.setenv(name, value)

    def start(environment: Environment, library: str, how: str) -> Any:
        folder = tmp_path / library
        folder.mkdir(exist_ok=True)
        text = SHOP.read_text()
        assert text.count(STOCK_IMPORT) == 1
        if library == "aegis_worker":
            text = text.replace(STOCK_IMPORT, OUR_IMPORT)
        (folder / "shop.py").write_text(text)
        return running(
            *(environment.python, "-c", f"import shop; shop.main({how!r})"),
            cwd=folder,
            env=environment.variables(**variables(redis_server)),
            log=folder / "log",
        )

    yield start
    sys.modules.pop("shop", None)


@pytest.mark.parametrize("how", ["class", "arguments"])
@pytest.mark.parametrize("libraries", [["arq"], ["aegis_worker"], ["arq", "aegis_worker"]], ids=" and ".join)
async def test_a_stock_project_runs_by_one_changed_import(
    bare: Environment, shop: Callable[..., Any], redis: ArqRedis, libraries: list[str], how: str
) -> None:
    """What a stock producer sees is the same from stock arq, from the library, and from both beside each other."""
    async with AsyncExitStack() as workers:
        started = [await workers.enter_async_context(shop(bare, library, how)) for library in libraries]
        await eventually(lambda: logged(redis, "startup", len(libraries)))
        seen = await everything(redis)
        await eventually(lambda: logged(redis, "tick", 2))
    log = [line.decode() for line in await redis.lrange("log", 0, -1)]
    assert seen == {
        "add": 41,
        "double": [6, 8],
        "what_ctx_has": ["discount", "enqueue_time", "greeting", "job_id", "job_try", "redis", "score"],
        "busy_at_first": 3,
        "busy": "JobExecutionFailed: max 2 retries exceeded",
        "fails": "SoldOut: no tea",
        "sleeps": "TimeoutError",
        "sleeps_long": "slept",
        "aborted": True,
        "forgotten": "ResultNotFound",
        "enqueues": "of a job",
        "unknown": "JobExecutionFailed: function 'unknown' not found",
        "expired": "JobExecutionFailed: job expired",
        "deferred": JobStatus.deferred,
        "refused": None,
        "info": ("add", (40,), {"other": 2}, True, 1, "arq:queue"),
        "of a job": 41,
    }, [each.text for each in started]
    assert log.count("try 1 of fails") == 1
    assert "try 2 of fails" not in log, "a plain exception is not retried"
    assert log.count("end of add") == log.count("after add") == 1
    assert log.count("shutdown with discount 1") == len(libraries)
    assert [each.process.returncode for each in started] == [0] * len(libraries)


async def logged(redis: ArqRedis, line: str, times: int = 1) -> bool:
    return (await redis.lrange("log", 0, -1)).count(line.encode()) >= times


async def everything(redis: ArqRedis) -> dict[str, Any]:
    """Enqueue as a stock producer, and return what it sees."""
    from shop import Basket  # type: ignore[import-not-found]

    async def enqueue(function: str, *args: Any, _job_id: str | None = None, **options: Any) -> Job:
        job = await redis.enqueue_job(function, *args, _job_id=_job_id or function, **options)
        assert job is not None
        return job

    jobs = [
        await enqueue("add", 40, other=2),
        await enqueue("double", Basket(3, 4)),
        await enqueue("what_ctx_has"),
        await enqueue("busy_at_first"),
        await enqueue("busy"),
        await enqueue("fails"),
        await enqueue("sleeps", 5),
        await enqueue("sleeps_long", 0.1),
        await enqueue("forgotten", 1, other=1, _defer_by=0.5),
        await enqueue("enqueues"),
        await enqueue("unknown"),
    ]
    aborted = await enqueue("sleeps_long", 60, _job_id="aborted")
    deferred = await enqueue("add", 1, other=1, _job_id="deferred", _defer_by=60)
    expired = await enqueue("add", 1, other=1, _job_id="expired", _defer_by=0.4, _expires=0.2)
    seen: dict[str, Any] = {job.job_id: await outcome(job) for job in [*jobs, expired]}
    seen["double"] = [*seen["double"].prices]
    seen["aborted"] = await aborted.abort(timeout=10, poll_delay=0.05)
    seen["deferred"] = await deferred.status()
    seen["refused"] = await redis.enqueue_job("add", 1, other=1, _job_id="add")
    info = await jobs[0].result_info()
    assert info is not None
    seen["info"] = (info.function, info.args, info.kwargs, info.success, info.job_try, info.queue_name)
    seen["of a job"] = await outcome(Job("of a job", redis))
    return seen


async def outcome(job: Job) -> Any:
    """Return a job's result, or what it raised."""
    try:
        return await job.result(timeout=15, poll_delay=0.05)
    except ResultNotFound:
        return "ResultNotFound"
    except TimeoutError:
        return "TimeoutError"
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition(" exceeded: ")[0]


# -- the pages ---------------------------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / name).read_text()


def files(name: str) -> dict[str, str]:
    """Return the files that a page shows, each under a line with its path."""
    return dict(re.findall(r"^`(\S+)`:\n\n```python\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL))


def snippets(name: str) -> list[str]:
    """Return a page's other pieces of Python."""
    text = re.sub(r"^`\S+`:\n\n```python\n.*?^```", "", page(name), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]


def execute(code: str, space: dict[str, Any]) -> None:
    exec(compile(code, "page", "exec", dont_inherit=True), space)


def commands(name: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)


def table(name: str, head: str) -> list[str]:
    """Return the names in code type of the first column of the table that begins with these words."""
    rows = page(name).partition(f"| {head} |")[2].split("\n\n")[0].splitlines()[2:]
    return [found for row in rows for found in re.findall(r"`(\w+)`", row.split("|")[1])]


def write(folder: Path, shown: dict[str, str]) -> None:
    for path, text in shown.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


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


# -- migrating ---------------------------------------------------------------------------------------------------------

MIGRATING = "docs/migrating.md"


async def test_a_stock_project_moves_to_the_library(
    bare: Environment, tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    old, new = re.search(r"^```diff\n-(.*)\n\+(.*)\n```", page(MIGRATING), re.MULTILINE).groups()  # type: ignore[union-attr]
    write(tmp_path, {"main.py": files(MIGRATING)["main.py"], "tasks.py": SHOP.read_text()})
    env = bare.variables(**variables(redis_server))
    for line, healthy in ((old, True), (new, False)):
        main = files(MIGRATING)["main.py"]
        assert new in main
        (tmp_path / "main.py").write_text(main.replace(new, line))
        async with running(bare.python, "main.py", cwd=tmp_path, env=env, log=tmp_path / "log"):
            job = await redis.enqueue_job("add", 20, other=3)
            assert job is not None
            assert await job.result(timeout=10, poll_delay=0.05) == 22
            check = await asyncio.create_subprocess_exec(
                *(bare.python, "-m", "arq", "tasks.WorkerSettings", "--check"), cwd=tmp_path, env=env
            )
            assert (await check.wait() == 0) is healthy
        assert ("INFO:arq.worker:" in (tmp_path / "log").read_text()) is (line == old)


async def test_a_worker_in_burst_mode_does_not_wait_for_deferred_jobs(
    redis: ArqRedis, redis_server: RedisSettings
) -> None:
    """As the table says, where arq's does."""
    job = await redis.enqueue_job("echo", _queue_name=QUEUE, _defer_by=30)
    assert job is not None
    worker = aegis_worker.Worker(
        [echo], queue_name=QUEUE, redis_settings=redis_server, burst=True, handle_signals=False
    )
    async with asyncio.timeout(10):
        await worker.async_run()
    await worker.close()
    assert await job.status() == JobStatus.deferred


async def test_a_stock_project_moves_to_this_repository(
    tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings
) -> None:
    copy_checkout(tmp_path)
    shown = {path: code for path, code in files(MIGRATING).items() if path.startswith("app/")}
    assert len(shown) == 2
    write(tmp_path, shown)
    env = {"PATH": os.environ["PATH"], "ENV": "none", "LOG_FORMAT": "text", **variables(redis_server)}
    app = [sys.executable, "-m", "aegis_worker"]

    async def check() -> tuple[int | None, str]:
        checked = await asyncio.create_subprocess_exec(
            *(*app, "worker", "--check", "--queue", "shop"), cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE
        )
        _, said = await checked.communicate()
        return checked.returncode, said.decode()

    assert await check() == (0, "")

    serializer = aegis_worker.Serializer()
    space: dict[str, Any] = {}
    (drained,) = (code for code in snippets(MIGRATING) if "is_drained" in code)
    execute(drained, space)
    log = tmp_path / "log"
    async with running(*app, "worker", "--queue", "shop", cwd=tmp_path, env=env, log=log):
        pickled = await redis.enqueue_job("add", 1, 2, _queue_name="arq:queue:shop")
        lost = await redis.enqueue_job("add", 1, 2)
        redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
        packed = await redis.enqueue_job("add", 1, 2, _queue_name="arq:queue:shop")
        assert pickled is not None
        assert packed is not None
        assert lost is not None
        assert await packed.result(timeout=20, poll_delay=0.05) == 3
        with pytest.raises(DeserializationError):
            await pickled.result(timeout=10, poll_delay=0.05)
        (letter,) = await admin.dead_letters(redis, "arq:queue:shop", [pickled.job_id])
        assert letter["reason"] == "undecodable"
        assert await lost.status() == JobStatus.queued, "no worker reads arq's default queue"
        assert not await space["is_drained"](redis)

    # What has no effect is told.
    queue = tmp_path / "app/components/worker/queues/shop.py"
    settings = "    redis_settings = RedisSettings('elsewhere')\n    health_check_key = 'own'\n    job_timout = 5\n"
    queue.write_text("from arq.connections import RedisSettings\n" + queue.read_text() + settings)
    code, said = await check()
    assert code == 0
    quoted = " ".join(page(MIGRATING).split())
    for told in (
        "redis_settings has no effect, since",
        "health_check_key 'own' has no effect",
        "job_timout is no option",
    ):
        assert told in said
    assert (
        "WorkerSettings of shop: redis_settings has no effect, since REDIS_URL says where the workers connect" in quoted
    )
    assert "job_timout is no option of a worker and is ignored; is job_timeout meant?" in quoted
    for line in said.splitlines():
        assert line.startswith("WorkerSettings of shop: ")


async def test_both_formats_can_be_read_for_a_while(redis: ArqRedis, serve: MakeWorker, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    execute(files(MIGRATING)["either.py"], space)
    worker = await serve(job_serializer=space["dumps"], job_deserializer=space["loads"])
    first = await redis.enqueue_job("echo", {1, 2}, _queue_name=QUEUE)
    redis.job_serializer, redis.job_deserializer = space["dumps"], space["loads"]
    second = await redis.enqueue_job("echo", {3}, _queue_name=QUEUE)
    assert first is not None
    assert second is not None
    either = Job(first.job_id, redis, QUEUE, space["loads"])
    assert await either.result(timeout=10, poll_delay=0.02) == {1, 2}
    assert await second.result(timeout=10, poll_delay=0.02) == {3}
    assert worker.jobs_failed == 0

    # A project's queue may have its own as well.
    class WorkerSettings:
        functions = [echo]  # noqa: RUF012
        job_deserializer = space["loads"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENV", "none")
        project = Project(settings="app.core.config:settings", queues="app.components.worker.queues")
        made = project.make_worker("system", WorkerSettings)
    assert made.job_deserializer is space["loads"]


def test_what_msgpack_would_refuse_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    space: dict[str, Any] = {"__name__": "shadow"}
    execute(files(MIGRATING)["shadow.py"], space)
    job = {"t": None, "f": "add", "a": (1, Path("/tmp")), "k": {}, "et": 0}
    assert space["dumps"](job) == pickle.dumps(job)
    assert [record.getMessage() for record in caplog.records] == [
        "arguments of add: a pathlib.PosixPath cannot be in a payload"
    ]
    assert space["dumps"](job | {"a": (1,)}) == pickle.dumps(job | {"a": (1,)})
    assert len(caplog.records) == 1


async def test_classes_and_models_are_carried_as_the_page_says(redis: ArqRedis, serve: MakeWorker) -> None:
    space: dict[str, Any] = {"__name__": "shop"}
    for code in snippets(MIGRATING):
        execute(code, space)
    serializer = aegis_worker.Serializer()
    redis.job_serializer, redis.job_deserializer = serializer.dumps, serializer.loads
    packed = {"job_serializer": serializer.dumps, "job_deserializer": serializer.loads}
    await serve(functions=[space["bill"], echo], queue_name="arq:queue:shop", **packed)

    order = space["Order"](number=7, placed="2026-05-01T12:00:00+02:00")
    job = await space["order_bill"](redis, order)
    answer = await job.result(timeout=10, poll_delay=0.02)
    assert space["Receipt"].model_validate(answer) == space["Receipt"](number=7, paid=True)
    with pytest.raises(SerializationError) as refused:
        await redis.enqueue_job("bill", order, _queue_name="arq:queue:shop")
    assert "Order cannot be in a payload" in str(refused.value.__cause__)

    async def echoed(value: Any) -> Any:
        job = await redis.enqueue_job("echo", value, _queue_name="arq:queue:shop")
        assert job is not None
        return await job.result(timeout=10, poll_delay=0.02)

    basket = space["Basket"]
    assert await echoed(basket([1, 2])) == basket([1, 2], "EUR")
    # Jobs of before `currency` was added, and of a class that had a field more.
    record = {"t": None, "f": "f", "k": {}, "et": 0}
    older, other = (
        serializer.dumps(record | {"a": (aegis_worker.register(cls)([1]),)})
        for cls in (
            make_dataclass("Basket", ["prices"], namespace={"__module__": "shop"}),
            make_dataclass("Basket", ["prices", ("owner", str, "me")], namespace={"__module__": "shop"}),
        )
    )
    aegis_worker.register(basket)
    assert serializer.loads(older)["a"] == (basket([1], "EUR"),)
    with pytest.raises(TypeError, match="owner"):
        serializer.loads(other)

    named = datetime(2026, 5, 1, 12, tzinfo=ZoneInfo("Europe/Vienna"))
    back = await echoed(named)
    assert back == named
    assert str(back.tzinfo) == "UTC+02:00"
    for value in (
        namedtuple("Point", "x")(1),
        defaultdict(list),
        OrderedDict(),
        Path("/"),
        type("Text", (str,), {})(""),
    ):
        with pytest.raises(aegis_worker.PayloadError):
            serializer.dumps(record | {"a": (value,)})
