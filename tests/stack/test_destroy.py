"""What `make down` leaves, and what `make destroy` does not."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.stack.conftest import MakeStack, Stack

LAYER = """\
services:
  {name}:
    extends: {{file: common.yml, service: hardened}}
    image: ${{REDIS_IMAGE}}
    command: [sleep, "600"]
    healthcheck: {{test: ["CMD", "true"]}}
    {profile}
    volumes: ["{name}-data:/data"]
    networks: [{name}]
networks: {{{name}: {{}}}}
volumes: {{{name}-data: {{}}}}
"""


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Stack:
    """A stack with data, a service of a profile, and one whose layer is about to go."""
    layers = "compose/base.yml:compose/prod.yml:compose/tool.yml:compose/old.yml"
    stack = make_stack("prod", COMPOSE_FILE=layers, REDIS_SSL="false")
    for name, profile in (("tool", "profiles: [tools]"), ("old", "")):
        (stack.folder / "compose" / f"{name}.yml").write_text(LAYER.format(name=name, profile=profile))
    stack.make("up")
    stack.redis("set", "app:kept", "1")
    return stack


def start_tool_and_drop_old(stack: Stack) -> None:
    stack.compose("--profile", "tools", "up", "--detach", "tool")
    stack.local_file.write_text(stack.local_file.read_text().replace(":compose/old.yml", ""))


def listed(stack: Stack, kind: str) -> list[str]:
    label = f"label=com.docker.compose.project={stack.project}"
    every = ["--all"] if kind == "container" else []
    form = "{{.Name}}" if kind != "container" else "{{.Names}}"
    argv = ["docker", kind, "ls", *every, "--format", form, "--filter", label]
    names = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return sorted(name.removeprefix(stack.project) for name in names)


def everything(stack: Stack) -> dict[str, list[str]]:
    return {kind: listed(stack, kind) for kind in ("container", "network", "volume")}


def on_a_terminal(stack: Stack, answer: bytes) -> subprocess.CompletedProcess[bytes]:
    """`make destroy`, and what somebody types."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        return subprocess.run(
            ["make", "--no-print-directory", "destroy", "ENV=prod"],
            cwd=stack.folder,
            stdin=theirs,
            capture_output=True,
            start_new_session=True,
            timeout=120,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def destroy(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make destroy` with nobody there."""
    return subprocess.run(
        ["python3", "-m", "ops", "--env", "prod", *arguments],
        cwd=stack.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_down_takes_profiles_and_orphans_and_no_data(stack: Stack) -> None:
    local = stack.local_file.read_text()
    start_tool_and_drop_old(stack)
    assert listed(stack, "container") == ["-old-1", "-redis-1", "-tool-1", "-worker-1"]
    stack.make("down")
    assert listed(stack, "container") == []
    assert listed(stack, "volume") == ["_old-data", "_redis-data", "_tool-data", "_worker-data"]

    stack.local_file.write_text(local)
    stack.make("up")
    assert stack.redis("get", "app:kept") == "1"
    start_tool_and_drop_old(stack)


@pytest.mark.parametrize("confirm", [[], ["--confirm", "dev"], ["--confirm", ""]])
def test_unless_its_name_is_given_nothing_is_deleted(stack: Stack, confirm: list[str]) -> None:
    there = everything(stack)
    done = destroy(stack, "destroy", *confirm)
    assert done.returncode == 2
    assert "nothing was deleted" in done.stderr.splitlines()[-1]
    assert everything(stack) == there


def test_on_a_terminal_it_asks(stack: Stack) -> None:
    there = everything(stack)
    for answer in (b"\n", b"yes\n", b"\x04"):
        done = on_a_terminal(stack, answer)
        assert done.returncode != 0
        assert b"type the environment's name, prod:" in done.stderr
        assert everything(stack) == there


def test_dry_run_says_what_would_go(stack: Stack) -> None:
    there = everything(stack)
    done = destroy(stack, "--dry-run", "destroy")
    assert done.returncode == 0
    assert f"volume {stack.project}_redis-data, " in done.stderr
    assert " keys in Redis" in done.stderr
    assert "docker volume rm" in done.stdout
    assert everything(stack) == there


def test_destroy_takes_all_but_what_cannot_be_had_again(stack: Stack) -> None:
    worker = stack.container("worker")
    show = ["docker", "inspect", "--format", "{{.Image}}", worker]
    image = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["docker", "rm", "--force", worker], check=True, capture_output=True)
    kept = {file: file.read_bytes() for file in (stack.folder / "secrets" / "prod").iterdir()}
    done = on_a_terminal(stack, b"prod\n")
    assert done.returncode == 0, done.stderr
    assert everything(stack) == {"container": [], "network": [], "volume": []}
    assert {file: file.read_bytes() for file in kept} == kept
    assert subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0
    assert "destroy" in stack.make("events").stdout

    again = destroy(stack, "destroy", "--confirm", "prod")
    assert again.returncode == 0
    assert again.stderr == "there is nothing of ENV=prod to remove\n"
