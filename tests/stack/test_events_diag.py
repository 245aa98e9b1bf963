"""What a stack has been through, and the archive that tells somebody else of it."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.stack.conftest import MakeStack, Stack

#: Values that stand out, with characters that are written in other ways elsewhere.
SECRETS = {
    "redis_password": "MARKED-worker/&+pw",
    "redis_admin_password": "MARKED-admin<pw>",
    "worker_signing_key": "MARKED-first-key-of-quite-some-length\nMARKED-second-key-of-quite-some-length",
}
VARIABLES = {"MARKED_API_TOKEN": "MARKED-token", "SHOP_URL": "https://ada:MARKED-url@shop.example.org/"}


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Stack:
    made = make_stack("prod", WORKER_MEMORY_LIMIT="256M", WORKER_MEMORY_RESERVATION="64M", **VARIABLES)
    folder = made.folder / "secrets" / "prod"
    folder.mkdir(parents=True, mode=0o700)
    for name, value in SECRETS.items():
        (folder / name).write_text(value)
    made.make("up")
    return made


def events(stack: Stack, arguments: str = "") -> list[dict[str, Any]]:
    lines = stack.make("events", f"ARGS=--json {arguments}").stdout.splitlines()
    return [json.loads(line) for line in lines]


def wait_for(stack: Stack, *wanted: str, of: str = "worker-1", arguments: str = "") -> list[dict[str, Any]]:
    """The events, once some of a container are among them in this order."""
    deadline = time.monotonic() + 40
    while True:
        told = events(stack, arguments)
        ours = iter([event["event"] for event in told if event["of"] == of])
        if all(event in ours for event in wanted):
            return told
        assert time.monotonic() < deadline, "\n".join(map(str, told))
        time.sleep(0.3)


def in_worker(stack: Stack, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "exec", stack.container("worker"), *command], capture_output=True, text=True, timeout=60
    )


KILL_A_WORKER = (
    "import os, pathlib\n"
    "for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
    "    if 'process.serve\\0system' in file.read_text():\n"
    "        os.kill(int(file.parent.name), 9)\n"
)


def test_what_befell_the_containers_is_told_in_order(stack: Stack) -> None:
    assert in_worker(stack, "python3", "-c", "x = b'1' * 600_000_000").returncode == 137
    wait_for(stack, "oom-kill")
    assert in_worker(stack, "python3", "-c", KILL_A_WORKER).returncode in (0, 137)
    wait_for(stack, "oom-kill", "supervisor", "ended", "started")
    # As the health checks of a minute do, this has the engine forget all of it.
    name = stack.container("redis")
    subprocess.run(["docker", "kill", "--signal=CONT", *[name] * 300], check=True, capture_output=True)
    told = wait_for(stack, "supervisor", "ended", "started")
    by_name = {event["event"]: event for event in told}
    assert by_name["up"]["by"]
    assert by_name["supervisor"]["details"] == "a worker ended with code -9: stopping"
    assert [event["at"] for event in told] == sorted(event["at"] for event in told)
    assert not [event for event in told if event["event"] == "healthy"], "that is as it should be"
    if subprocess.run(["dmesg"], capture_output=True).returncode == 0:
        assert by_name["oom-kill"]["details"].startswith("python3, process ")
        assert [event["event"] for event in told].count("oom-kill") == 1


def test_for_people_each_is_a_line(stack: Stack) -> None:
    stack.make("scale", "N=2")
    done = stack.make("events", "ARGS=--since 10m")
    (line,) = [line for line in done.stdout.splitlines() if "  scale " in line]
    assert "worker  " in line
    assert "replicas 2 by " in line
    assert stack.make("events", "ARGS=--since 0s").stdout == ""


def test_follow_goes_on(stack: Stack) -> None:
    command = ["python3", "-m", "ops", "--env", "prod", "events", "--since", "1s", "--follow", "--json"]
    following = subprocess.Popen(command, cwd=stack.folder, stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    try:
        stack.make("scale", "N=1")
        seen: dict[str, Any] = {}
        while seen.get("event") != "scale" or "replicas 1" not in seen["details"]:
            seen = json.loads(following.stdout.readline())
    finally:
        following.send_signal(2)
    assert following.wait(20) == 130


# -- the archive --------------------------------------------------------------------------------------------------


def archives(stack: Stack) -> list[Path]:
    return sorted((stack.folder / ".local").glob("diag-*"))


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        return {name.partition("/")[2]: tar.extractfile(name).read().decode() for name in tar.getnames()}


def spellings(value: str) -> list[str]:
    raw = value.encode()
    return [value, quote(value, safe=""), base64.b64encode(raw).decode().rstrip("="), raw.hex()]


@pytest.fixture(scope="module")
def archive(stack: Stack) -> dict[str, str]:
    # A task that says too much, in several ways.
    talk = "import pathlib,base64\nfor f in ('redis_password','worker_signing_key','redis_client.key'):\n"
    talk += " t=pathlib.Path('/run/secrets',f).read_text()\n print(t, t.encode().hex(), flush=True)\n"
    talk += " print('Basic', base64.b64encode(b'worker:'+t.encode()).decode(), flush=True)\n"
    said = in_worker(stack, "sh", "-c", f'python3 -c "{talk}" > /proc/1/fd/1')
    assert said.returncode == 0, said.stderr
    assert "MARKED" in stack.compose("logs", "worker")
    stack.redis("config", "set", "slowlog-log-slower-than", "0")
    stack.redis("set", "app:payload", "MARKED-payload")
    stack.redis("config", "set", "slowlog-log-slower-than", "10000")
    done = stack.make("diag")
    (path,) = archives(stack)
    assert done.stdout.split() == [str(path.relative_to(stack.folder))]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return unpacked(path)


def test_the_archive_tells_what_there_is(stack: Stack, archive: dict[str, str]) -> None:
    assert json.loads(archive["config.json"])["name"] == stack.project
    assert len(json.loads(archive["docker/containers.json"])) == 2
    assert len(json.loads(archive["docker/volumes.json"])) == 2
    assert "serving arq:queue:system" in archive[f"logs/{stack.project}-worker-1.txt"]
    assert json.loads(archive["health.json"])["queues"][0]["dead"] == 0
    assert "redis_version:" in archive["redis/info.txt"]
    assert json.loads(archive["redis/config.txt"])["appendonly"] == "yes"
    assert "user monitor on" in archive["redis/acl.txt"]
    assert "app:payload" in archive["redis/slowlog.json"]
    assert "oom-kill" in archive["events.txt"]
    assert "Server Version" in archive["docker/info.txt"]
    for name in archive:
        assert name == "README.txt" or f"  {name} " in archive["README.txt"]


def test_no_secret_is_in_it(stack: Stack, archive: dict[str, str]) -> None:
    everything = "\n".join(f"{name}\n{text}" for name, text in archive.items())
    folder = stack.folder / "secrets" / "prod"
    values = [line for file in folder.iterdir() if file.suffix != ".crt" for line in file.read_text().splitlines()]
    secrets = [value for value in values if not value.startswith(("-----", "user ")) and len(value) > 10]
    assert len(secrets) > 10
    for value in secrets:
        assert not [way for way in spellings(value) if way in everything]
    assert "MARKED-" not in everything
    assert "MARKED_API_TOKEN=[redacted]" in archive["env/prod.local.env"]
    assert "SHOP_URL=https://[redacted]@shop.example.org/" in archive["env/prod.local.env"]
    assert "SHOP_URL=https://[redacted]@shop.example.org/" in archive["docker/containers.json"]
    assert not any(len(word) == 65 and word.startswith("#") for word in archive["redis/acl.txt"].split())


def test_dry_run_writes_none(stack: Stack, archive: dict[str, str]) -> None:
    before = archives(stack)
    said = stack.make("diag", "DRY_RUN=1").stdout
    assert "docker container inspect" in said
    assert "# write .local/diag-prod-" in said
    assert archives(stack) == before


def test_cut_short_leaves_none(stack: Stack, archive: dict[str, str]) -> None:
    before = archives(stack)
    command = ["python3", "-m", "ops", "--env", "prod", "diag"]
    time.sleep(1)  # archives are named by the second
    writing = subprocess.Popen(command, cwd=stack.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not [path for path in archives(stack) if path.suffix == ".partial"]:
        assert writing.poll() is None
        time.sleep(0.01)
    writing.send_signal(2)
    assert writing.wait(30) == 130
    assert archives(stack) == before


def test_a_broken_stack_is_told_of_too(stack: Stack, archive: dict[str, str], tmp_path: Path) -> None:
    stack.run("docker", "rm", "--force", stack.container("redis"))
    subprocess.run(["docker", "pause", stack.container("worker")], check=True, capture_output=True)
    for file in archives(stack):
        file.unlink()
    stack.make("diag")
    (path,) = archives(stack)
    told = unpacked(path)
    assert len(json.loads(told["docker/containers.json"])) == 1
    assert "redis/info.txt" not in told
    assert "FAILED" in told["README.txt"]
    assert "MARKED-" not in "".join(told.values())

    path.unlink()
    stack.run("python3", "-m", "ops", "--env", "prod", "diag", DOCKER_HOST="unix:///nowhere/docker.sock")
    (path,) = archives(stack)
    told = unpacked(path)
    assert "docker.sock" in told["docker/version.txt"]
    assert told["events.txt"] == "no Docker engine answers\n"
    assert "env/prod.env" in told
    subprocess.run(["docker", "unpause", stack.container("worker")], check=True, capture_output=True)
