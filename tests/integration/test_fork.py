"""A team's fork: a queue, a setting and a variable more, and none of our tests is red that a team does not own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import copy_checkout

QUEUE = '''\
"""Letters to customers."""

from app.components.worker.queues import configured
from app.components.worker.tasks.fork_test import send_letter


@configured("fork_test")
class WorkerSettings:
    functions = [send_letter]  # noqa: RUF012 - arq's own form
    max_jobs = 7
'''
TASK = """\
from __future__ import annotations

from typing import Any

from app.core.config import settings


async def send_letter(ctx: dict[str, Any], to: str) -> str:
    return f"{settings.FORK_TEST_FROM}: to {to}"
"""
FIELD = """
    FORK_TEST_FROM: str = Field("nobody", description="whom letters are from")
    FORK_TEST_ONLY: bool = Field(False, description="whether letters are only written")
"""
VARIABLES = """
# Whom letters are from.
FORK_TEST_FROM=nobody
# An address that a task reads by itself.
FORK_TEST_URL=http://localhost
WORKER_FORK_TEST_MAX_JOBS=5
WORKER_FORK_TEST_REPLICAS=1
WORKER_FORK_TEST_CPU_LIMIT=1
WORKER_FORK_TEST_MEMORY_LIMIT=512M
"""
SERVICE = """
  worker-fork-test:
    extends: {file: common.yml, service: worker}
    pull_policy: never
    depends_on: *after-redis
    environment: {WORKER_QUEUES: fork_test}
    memswap_limit: ${WORKER_FORK_TEST_MEMORY_LIMIT}
    deploy:
      replicas: ${WORKER_FORK_TEST_REPLICAS}
      resources:
        limits: {cpus: "${WORKER_FORK_TEST_CPU_LIMIT}", memory: "${WORKER_FORK_TEST_MEMORY_LIMIT}"}
"""
#: The tests that settings, variables, layers, queues or pages could turn red, and a few of those that run a project.
TESTS = [
    *("tests/unit/test_settings.py", "tests/unit/test_ops.py", "tests/unit/test_layers.py"),
    *("tests/unit/test_doctor.py", "tests/integration/test_docs.py", "tests/integration/test_bad_settings.py"),
    "tests/integration/test_cli.py::test_tasks",
    "tests/integration/test_cli_refusals.py::test_an_unknown_queue",
    "tests/integration/test_cli_refusals.py::test_settings_to_mend_are_named_at_once_with_their_values",
    "tests/integration/test_local.py::test_a_first_look",
    "tests/integration/test_processes.py::test_each_queue_has_its_processes_and_one_signal_stops_all",
    "tests/integration/test_processes.py::test_stock_arq_runs_our_queue_and_checks_its_health",
]


def edit(file: Path, before: str, text: str) -> None:
    """Put a text before the one place that a pattern finds."""
    made, places = re.subn(before, lambda found: text + found[0], file.read_text())
    assert places == 1, (file, before)
    file.write_text(made)


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fork")
    copy_checkout(folder)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # of whose files tests make copies
    worker = folder / "app" / "components" / "worker"
    (worker / "queues" / "fork_test.py").write_text(QUEUE)
    (worker / "tasks" / "fork_test.py").write_text(TASK)
    edit(folder / "app" / "core" / "config.py", r"\n\nsettings = Settings\(\)", FIELD)
    base = folder / "env" / "base.env"
    edit(base, r"(?<=\nWORKER_QUEUES=)", "fork_test,")
    base.write_text(base.read_text() + VARIABLES)
    prod = folder / "env" / "prod.env"
    prod.write_text(prod.read_text() + "\nFORK_TEST_ONLY=true\nFORK_TEST_PROVIDER=example\n")
    queues = folder / "compose" / "queues.yml"
    queues.write_text(queues.read_text() + SERVICE)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "AEGIS_"))}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("env", ["dev", "prod"])
def test_its_configuration_is_loaded(fork: Path, env: str) -> None:
    done = run(fork, "python3", "-m", "ops", "--env", env, "secrets")
    assert done.returncode == 0, done.stderr


def test_no_test_of_ours_is_red(fork: Path) -> None:
    done = run(fork, ".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


def test_its_arrows_point_as_ours_do(fork: Path) -> None:
    done = run(fork, ".venv/bin/lint-imports", "--no-cache", "--no-logo")
    assert done.returncode == 0, done.stdout
