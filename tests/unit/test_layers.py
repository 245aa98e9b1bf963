"""What import-linter cannot see of the house: one subclass of arq's worker, and a library that needs no checkout.

The arrows between modules are contracts in .importlinter, which `make lint` checks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Imports all of the library, and prints what came of it.
IMPORT = """
import gc, importlib, json, os, pkgutil, sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event in ("open", "os.listdir") else None)
import aegis_worker
for module in pkgutil.walk_packages(aegis_worker.__path__, "aegis_worker."):
    if module.name != "aegis_worker.__main__":
        importlib.import_module(module.name)
from arq.worker import Worker
from pydantic_settings import BaseSettings

def below(cls):
    return [name for sub in cls.__subclasses__() for name in (f"{sub.__module__}.{sub.__name__}", *below(sub))]

print(json.dumps({
    "opened": opened,
    "modules": list(sys.modules),
    "settings": [type(each).__name__ for each in gc.get_objects() if isinstance(each, BaseSettings)],
    "workers": below(Worker),
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What came of importing the library where there is nothing."""
    empty = tmp_path_factory.mktemp("empty")
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=empty, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(empty.iterdir()) == []
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_only_worker_inherits_arqs(seen: dict[str, list[str]]) -> None:
    assert seen["workers"] == ["aegis_worker.worker.worker.Worker"]


def test_the_library_is_imported_without_a_checkout_and_makes_no_settings(seen: dict[str, list[str]]) -> None:
    assert sum(name.startswith("aegis_worker.") for name in seen["modules"]) > 30
    assert seen["settings"] == []
    assert not {"app", "docs", "ops", "tests"} & {name.partition(".")[0] for name in seen["modules"]}
    code = (ROOT / "library", ROOT / ".venv", (ROOT / ".venv").resolve())
    read = [path for path in map(Path, seen["opened"]) if path.is_relative_to(ROOT)]
    assert [path for path in read if not any(map(path.is_relative_to, code))] == []
