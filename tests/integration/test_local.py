"""`make local`: the stack without Docker, as somebody at a first look uses it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.conftest import copy_checkout, free_port

TASK = Path("app/components/worker/tasks/system.py")


class Local:
    """A checkout with `make local` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "env" / "dev.local.env").write_text(f"REDIS_PORT={self.port}\nWORKER_HEALTH_CHECK_INTERVAL=1\n")
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def make(self, target: str) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.log.open("ab") as log:
            # A group of its own, which gets the Ctrl-C as all that a terminal runs does.
            return subprocess.Popen(
                ["make", target], cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> None:
        self.process = self.make("local")
        self.eventually(lambda: self.cli("health", "probe").returncode == 0)

    def ctrl_c(self) -> int:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "AEGIS_PROJECT"}
        command = [".venv/bin/python", "-m", "aegis_worker", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def answers(self, text: str) -> bool:
        return text in self.cli("job", "enqueue", "system_health_check", "--wait").stdout

    def eventually(self, condition: object, within_s: float = 20) -> None:
        assert callable(condition)
        deadline = monotonic() + within_s
        while not condition():
            assert monotonic() < deadline, self.log.read_text()
            sleep(0.1)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    copy_checkout(tmp_path)
    local = Local(tmp_path)
    yield local
    if local.process and local.process.poll() is None:
        local.ctrl_c()


def test_a_first_look(local: Local) -> None:
    local.start()
    assert local.answers("redis_version")

    with local.folder.joinpath(TASK).open("a") as source:
        source.write("\n\nasync def system_health_check(ctx):\n    return 'changed'\n")
    local.eventually(lambda: local.answers("changed"))

    assert local.cli("queue", "pause", "system").returncode == 0
    assert local.cli("job", "enqueue", "check_url", "http://localhost:1", "--id", "kept").returncode == 0
    local.ctrl_c()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", local.port)) != 0, "the server goes, too"

    local.start()
    assert local.cli("job", "status", "kept").returncode == 0
    subprocess.run(["pkill", "-TERM", "-f", "^python3 -m ops .*local$", "-s", str(local.process.pid)], check=True)
    assert local.process.wait(20) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", local.port)) != 0, "however it ends"


def test_without_its_server_it_ends(local: Local) -> None:
    local.start()
    assert local.process is not None
    subprocess.run(["pkill", "-KILL", "-f", f"valkey-server .*:{local.port}"], check=True)
    assert local.process.wait(30) != 0
    assert "Valkey ended with code -9: stopping" in local.log.read_text()


def test_a_port_that_is_taken_is_one_line(local: Local) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", local.port))
        other.listen()
        assert local.make("local").wait(20) != 0
    said = local.log.read_text()
    assert f"port {local.port} is taken" in said
    assert "Traceback" not in said
