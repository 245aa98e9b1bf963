"""A worker's real process with settings and secrets that cannot work: it ends, names each, and shows no secret."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT, ROOT

Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tests' project, so that it can have secrets."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tests" / "project", folder / "tests" / "project")
    secrets(folder).mkdir(parents=True)
    return folder


def secrets(checkout: Path) -> Path:
    return checkout / "tests" / "project" / "secrets" / "test"


@pytest.fixture
def refused(checkout: Path) -> Run:
    """Starts ``my-app worker``, which has to end by itself; returns the lines that it says."""

    def run(**variables: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "aegis_worker", "worker", "--queue", "system"],
            cwd=checkout,
            env={"PATH": os.environ["PATH"], "ENV": "test", "AEGIS_PROJECT": PROJECT, **variables},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "Traceback" not in done.stderr
        assert "geheim" not in done.stderr
        return done.stderr.splitlines()

    return run


def test_all_settings_that_cannot_work_are_named_at_once(refused: Run) -> None:
    assert refused(
        REDIS_SSL="perhaps",
        WORKER_LEASE_SECONDS="1e999",
        WORKER_MAX_TRIES="0",
        WORKER_SERIALIZER="yaml\x1b[31m",
        REDIS_PASSWORD="geheim",
        WORKER_SIGNING_KEY="geheim",
    ) == [
        "REDIS_SSL=perhaps: Input should be a valid boolean, unable to interpret input",
        "WORKER_SERIALIZER=yaml\\u001b[31m: Input should be 'msgpack', 'json' or 'pickle'",
        "WORKER_MAX_TRIES=0: Input should be greater than 0",
        "WORKER_LEASE_SECONDS=1e999: Input should be a valid integer, unable to parse string as an integer",
    ]


def test_keys_that_are_too_short_are_not_shown(refused: Run) -> None:
    assert refused(WORKER_SIGNING_KEY="geheim") == [
        "WORKER_SIGNING_KEY: each line is a key and needs at least 32 characters"
    ]


def test_each_queues_own_settings_are_named(refused: Run) -> None:
    said = refused(WORKER_SYSTEM_MAX_JOBS="none", WORKER_MEDIA_RATE_LIMIT="9")
    assert [line.split(":")[0] for line in said] == ["WORKER_MEDIA_RATE_LIMIT=9", "WORKER_SYSTEM_MAX_JOBS=none"]


def test_a_secret_that_is_no_text_is_named(refused: Run, checkout: Path) -> None:
    file = secrets(checkout) / "redis_password"
    file.write_bytes(b"geheim\xff")
    (said,) = refused()
    file.unlink()
    assert "REDIS_PASSWORD" in said
    assert "can't decode byte 0xff" in said
