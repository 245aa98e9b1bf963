"""The library alone, from its wheel, in an environment that has nothing else; and its pages, whose examples run there.

No network is needed: what the wheel depends on is copied, file by file, from the environment that the tests run in, and
pip checks that it is complete.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, JobStatus, ResultNotFound
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, eventually

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
        code = "import json; from importlib.metadata import distributions as d; print(json.dumps([x.name for x in d()]))"
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
    assert not [entry for entry in path if str(ROOT) in entry or "site-packages" in entry and str(bare.folder) not in entry]
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
    assert process.returncode in (0, -15), log.read_text()


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
    assert log.count("tick") >= 2
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
