"""What the wheel has, and what it says where the extra is missing."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

import aegis_worker
from tests.conftest import ROOT
from tests.integration.library.conftest import LIBRARY, Environment

OF_THE_EXTRA = {"pydantic", "pydantic-settings", "python-dotenv", "python-json-logger", "rich", "typer", "uvloop"}


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
