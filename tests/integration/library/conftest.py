"""Environments that have the library's wheel and nothing else, and the programs that run in them.

No network is needed: what the wheel depends on is copied, file by file, from the environment that the tests run in, and
pip checks that it is complete.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from arq.connections import RedisSettings
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LIBRARY = ROOT / "library"


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and its dependencies, without any extra."""
    return new_environment(tmp_path_factory.mktemp("bare") / "venv", wheel)


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the extra, and with what builds it from source."""
    folder = tmp_path_factory.mktemp("full") / "venv"
    return new_environment(folder, wheel, extra="project", more=("pip", "setuptools"))


SHOP = Path(__file__).parent / "stock" / "shop.py"


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
