"""A bundle of one engine, loaded and run by a second one on the same machine: empty, and without any network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stack.conftest import MakeStack, Stack

SECRET = uuid.uuid4().hex
IMAGE = "aegis-worker-test-bundle"
ALONE = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None, reason="a second engine takes root and dockerd"
)


@pytest.fixture(scope="module")
def source(make_stack: MakeStack) -> Iterator[Stack]:
    yield make_stack("prod", APP_IMAGE=IMAGE, WORKER_MAX_TRIES="4", GREETING="a$$b", SHOUT="'a #b'")
    subprocess.run(["docker", "image", "rm", "--force", f"{IMAGE}:dev"], capture_output=True)


@pytest.fixture(scope="module")
def bundle(source: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "all.bundle.tar"
    (source.folder / "secrets" / "prod").mkdir(parents=True)
    (source.folder / "secrets" / "prod" / "redis_password").write_text(SECRET)
    assert source.make("bundle", f"FILE={path}").stdout.splitlines()[-1] == str(path)
    assert list(path.parent.iterdir()) == [path], "nothing else is left"
    return path


@dataclass
class Host:
    """The other machine: its own engine, and a folder into which a bundle was unpacked."""

    socket: Path
    folder: Path

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"DOCKER_HOST": f"unix://{self.socket}"} | variables
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("make", "--no-print-directory", "ENV=prod", *arguments)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    # Not in pytest's own folder: a socket's path must not be longer than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="aegis-engine-"))
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    options = [part for name, place in places.items() for part in (f"--{name}", str(folder / place))]
    names = ["--containerd-namespace", "aegis-second", "--containerd-plugins-namespace", "aegis-second-plugins"]
    dockerd = ["dockerd", *options, *names, "--host", f"unix://{folder / 'socket'}"]
    # In a network of its own it has nothing but the loopback device, and the first engine's rules are not its own.
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *dockerd]
    with (folder / "log").open("w") as log:
        engine = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    there = Host(folder / "socket", tmp_path_factory.mktemp("host"))
    try:
        for _ in range(150):
            if there.run("docker", "version").returncode == 0:
                break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        yield there
    finally:
        if ids := there.run("docker", "ps", "--all", "--quiet").stdout.split():
            there.run("docker", "rm", "--force", "--volumes", *ids)
        engine.terminate()
        engine.wait(20)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(folder)


def test_it_has_the_checkout_and_no_secret(source: Stack, bundle: Path) -> None:
    with tarfile.open(bundle) as tar:
        names = tar.getnames()
        manifest = json.loads(tar.extractfile("manifest.json").read())
        assert not any(SECRET in str(tar.extractfile(name).read()) for name in names)
    assert (names[0], *names[-2:]) == ("manifest.json", "images.tar", "SHA256SUMS")
    assert {"aegis-worker/Makefile", "aegis-worker/compose/tls.yml", "aegis-worker/env/prod.env"} <= set(names)
    assert not [name for name in names if name.split("/")[1:2] in (["secrets"], [".local"], [".venv"])]
    assert sorted(manifest["images"]) == [f"{IMAGE}:dev", "python:3.13-slim-trixie", "redis:8-alpine"]
    assert manifest["variables"]["COMPOSE_PROJECT_NAME"] == source.project


@ALONE
def test_an_empty_engine_without_a_network_runs_it(host: Host, bundle: Path, source: Stack) -> None:
    assert host.run("docker", "images", "--quiet").stdout == ""
    subprocess.run(["tar", "xf", bundle, "aegis-worker"], cwd=host.folder, check=True)
    host.folder /= "aegis-worker"
    (host.folder / "env" / "prod.local.env").write_text("WORKER_MAX_TRIES=2\n")

    dry = host.make("load", f"FILE={bundle}", "DRY_RUN=1")
    assert dry.stdout.splitlines()[0] == "docker load --quiet"
    assert "# write APP_VERSION=dev into env/prod.local.env" in dry.stdout
    assert host.run("docker", "images", "--quiet").stdout == ""

    loaded = host.make("load", f"FILE={bundle}")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stderr.splitlines()[-1] == "dev is here; to start it, type: make up ENV=prod"
    written = (host.folder / "env" / "prod.local.env").read_text().splitlines()
    assert {f"APP_IMAGE={IMAGE}", "APP_VERSION=dev", "WORKER_MAX_TRIES=2", "GREETING=a$$b", "SHOUT='a #b'"} <= set(
        written
    )

    up = host.make("up")
    assert up.returncode == 0, up.stderr
    assert not any(word in (up.stdout + up.stderr).lower() for word in ("pulling", "building", "built"))
    worked = host.make("load-test", "ARGS=io -n 50 --json")
    assert json.loads(worked.stdout)["done"] == 50
    routes = host.run("docker", "run", "--rm", "--network=host", "redis:8-alpine", "cat", "/proc/net/route").stdout
    assert routes.startswith("Iface")
    assert not [line for line in routes.splitlines() if line.split()[1] == "00000000"], "a way out"

    again = host.make("load", f"FILE={bundle}")
    assert again.stderr.splitlines()[-1] == "dev is here; to start it, type: make deploy VERSION=dev ENV=prod"
    gone = host.make("destroy", "CONFIRM=prod")
    assert gone.returncode == 0, gone.stderr
    assert host.run("docker", "volume", "ls", "--quiet").stdout == ""


# -- what is refused ----------------------------------------------------------------------------------------------


def refusal(stack: Stack, *arguments: str, **variables: str) -> str:
    """The one line with which `make load` ends; it has left everything as it was."""
    before = subprocess.run(["docker", "image", "inspect", f"{IMAGE}:dev"], capture_output=True).stdout
    local = stack.local_file.read_text()
    done = stack.run("python3", "-m", "ops", "--env", "prod", "load", *arguments, check=False, **variables)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert stack.local_file.read_text() == local
    assert subprocess.run(["docker", "image", "inspect", f"{IMAGE}:dev"], capture_output=True).stdout == before
    return line


@pytest.mark.parametrize("where", ["SHA256SUMS", "manifest.json", "aegis-worker/Makefile", "images.tar", "the end"])
def test_a_damaged_one(source: Stack, bundle: Path, tmp_path: Path, where: str) -> None:
    damaged = tmp_path / "damaged.bundle.tar"
    shutil.copy(bundle, damaged)
    with tarfile.open(bundle) as tar:
        parts = {entry.name: entry for entry in tar}
    if where == "the end":
        os.truncate(damaged, parts["images.tar"].offset_data + 1_000_000)
    else:
        with damaged.open("r+b") as file:
            file.seek(parts[where].offset_data + parts[where].size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    said = refusal(source, str(damaged))
    assert said.startswith("damaged.bundle.tar is not a bundle, or is damaged (")
    assert said.endswith("): nothing was loaded")


def rewritten(bundle: Path, folder: Path, **changes: object) -> str:
    """A bundle of a manifest alone, with some of it changed."""
    with tarfile.open(bundle) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())
    text = json.dumps(manifest | changes)
    (folder / "manifest.json").write_text(text)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n")
    with tarfile.open(folder / "other.bundle.tar", "w") as tar:
        for name in ("SHA256SUMS", "manifest.json"):
            tar.add(folder / name, name)
    return str(folder / "other.bundle.tar")


def test_one_for_something_else(source: Stack, bundle: Path, tmp_path: Path) -> None:
    assert "has images for linux/s390x; this engine runs" in refusal(
        source, rewritten(bundle, tmp_path, platform="linux/s390x")
    )
    said = refusal(source, rewritten(bundle, tmp_path, environment="staging"))
    assert said.startswith("other.bundle.tar is for ENV=staging: `make load FILE=")
    assert f"needs {IMAGE}:other here, which other.bundle.tar does not have" in refusal(
        source, rewritten(bundle, tmp_path, version="other")
    )


def test_none(source: Stack, tmp_path: Path) -> None:
    assert refusal(source, str(tmp_path / "nope")) == f"FILE={tmp_path}/nope: there is no such file"
    (tmp_path / "text").write_text("x" * 2000)
    assert refusal(source, str(tmp_path / "text")).startswith("text is not a bundle, or is damaged")
    assert refusal(source, "") == "FILE=: which bundle? `make load FILE=…`"


def test_cut_short_leaves_nothing(source: Stack, tmp_path: Path) -> None:
    command = ["python3", "-m", "ops", "--env", "prod", "bundle", "--file", str(tmp_path / "cut.bundle.tar")]
    making = subprocess.Popen(command, cwd=source.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert making.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    making.send_signal(2)
    assert making.wait(30) == 130
    assert list(tmp_path.iterdir()) == []


def test_dry_run_only_says_it(source: Stack, tmp_path: Path) -> None:
    done = source.make("bundle", f"FILE={tmp_path}/dry.bundle.tar", "DRY_RUN=1")
    assert f"docker save --output {tmp_path}/" in done.stdout
    assert done.stdout.splitlines()[-1] == f"# write {tmp_path}/dry.bundle.tar"
    assert list(tmp_path.iterdir()) == []
