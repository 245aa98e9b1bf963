"""The rules for `app/` as it is handed over. A team that has tasks of its own keeps those that it likes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

APP = ROOT / "app"
FILES = {
    *("__init__.py", "project.py", "core/__init__.py", "core/config.py"),
    *("components/__init__.py", "components/worker/__init__.py", "components/worker/custom.py"),
}
FOLDERS = {"components/worker/queues", "components/worker/tasks"}
TASKS = sorted((APP / "components" / "worker" / "tasks").glob("*.py"))
#: Of the library tasks have the policies, what registers a type, and the errors of payloads.
LIBRARY = {
    "aegis_worker": {"Backoff", "PayloadError", "RateLimit", "RemoteError", "register"},
    "aegis_worker.payload": {"PayloadError", "RemoteError", "register"},
    "aegis_worker.queue.policies": {"Backoff", "RateLimit"},
}


def files() -> list[Path]:
    return [path for path in APP.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_it_is_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in files()) <= 750


def test_it_has_what_a_team_edits_and_nothing_else() -> None:
    for path in files():
        name = path.relative_to(APP)
        assert name.as_posix() in FILES or (name.parent.as_posix() in FOLDERS and name.suffix == ".py"), name


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_tasks_import_little_of_the_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [name for name in node.names if name.name.partition(".")[0] == "aegis_worker"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "aegis_worker":
            assert {name.name for name in node.names} <= LIBRARY[node.module or ""]
