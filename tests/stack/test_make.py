"""The front door: what `make` says and does where there is no stack, or no engine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("make")
    copy_checkout(folder)
    # A dev stack of another checkout may run on this machine.
    (folder / "env" / "dev.local.env").write_text("COMPOSE_PROJECT_NAME=aegis-test-make\n")
    return folder


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_alone_it_lists_every_target(checkout: Path) -> None:
    listed = re.findall(r"^  make (\S+)", make(checkout).stdout, re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == targets


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "ENV=nope"], "ENV=nope: there is no env/nope.env; there are: dev, prod"),
        (["scale", "N=some"], "N=some: a number of replicas is 0 to 9999, as in `make scale N=3`"),
        (["scale"], "N=: a number of replicas is 0 to 9999, as in `make scale N=3`"),
        (["scale", "N=10000"], "N=10000: a number of replicas is 0 to 9999, as in `make scale N=3`"),
        (["backup", "KEEP=²"], "KEEP=²: a number of backups to keep is 1 or more"),
        (["restore", "FILE=it's"], "FILE=it's: there is no such file; `ls backups` shows what there is"),
        (["restart", "ENV=other"], "the stack is down: `make up ENV=other` starts it"),
        (["health", "ENV=other"], "no worker is up in ENV=other: `make up ENV=other`"),
    ],
)
def test_what_is_wrong_is_one_line(checkout: Path, arguments: list[str], said: str) -> None:
    other = (checkout / "env" / "prod.env").read_text().replace("ENV=prod", "ENV=other").replace("aegis-prod", "none")
    (checkout / "env" / "other.env").write_text(other)
    try:
        done = make(checkout, *arguments)
    finally:
        (checkout / "env" / "other.env").unlink()
    assert done.returncode != 0
    first, *more = done.stderr.splitlines()
    if "nope" in said:
        said = said.replace("dev, prod", "dev, other, prod")
    assert first == said
    assert len(more) == 1, "make's own"


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    (local := tmp_path / ".local").write_text("")
    done = make(tmp_path, "secrets")
    assert done.stderr.splitlines()[0] == f"{local}: File exists"


def test_whoever_has_read_enough_gets_no_traceback(checkout: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = ["python3", "-m", "ops", "releases"]
    done = subprocess.run(command, cwd=checkout, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_dry_run_of_a_build_only_says_it(checkout: Path) -> None:
    assert make(checkout, "build", "DRY_RUN=1").stdout.splitlines()[-1].endswith("dev.local.env build")


def test_without_docker_it_says_what_to_type(checkout: Path, tmp_path: Path) -> None:
    for tool in ("make", "sh"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / "python3").symlink_to("/usr/bin/python3")
    done = make(checkout, "up", PATH=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == "Docker is not installed here: `make engine` installs and starts it"
    assert not (checkout / "secrets").exists(), "nothing was done"


def test_without_an_engine_it_says_what_to_type(checkout: Path) -> None:
    done = make(checkout, "up", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == "no Docker engine answers: `make engine` starts it"


def test_engine_leaves_a_good_one_alone(checkout: Path) -> None:
    done = make(checkout, "engine")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"engine ready: Docker Engine \S+, Compose \S+\n", done.stdout)
