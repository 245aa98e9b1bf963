"""The processes of a measurement: a server, workers and a producer; each ends with its block."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arq.connections import ArqRedis
from redis.exceptions import ConnectionError

from benchmarks.environments import python_of
from benchmarks.systems import QUEUE, System
from ops.config import ROOT
from ops.local import MALLOC, server_binary

STARTS_WITHIN_S = 10.0
ENDS_WITHIN_S = 10.0


class Failed(Exception):
    """A system did not do what is measured; says what."""


@dataclass
class Process:
    """A process that was started, its errors in a file."""

    name: str
    popen: subprocess.Popen[str]
    errors: Path

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that it has used, in all its threads."""
        self.check()
        return time.clock_gettime((~self.popen.pid << 3) | 2)  # Linux's number for another process's clock

    def check(self) -> None:
        """Raise ``Failed`` if it has ended."""
        if self.popen.poll() is not None:
            last = "".join(self.errors.read_text(errors="replace").strip().splitlines()[-1:])
            raise Failed(f"{self.name} ended with code {self.popen.returncode}: {last}")


@contextlib.contextmanager
def process(name: str, command: list[Any], folder: Path, **options: Any) -> Iterator[Process]:
    """A process, which is terminated in the end."""
    errors = folder / f"{name}.log"
    with errors.open("w") as log:
        popen = subprocess.Popen(command, cwd=ROOT, stderr=log, text=True, **({"stdout": log} | options))
    try:
        yield Process(name, popen, errors)
    finally:
        popen.terminate()
        try:
            popen.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@dataclass
class Server:
    """A server, and connections to the two databases that systems use."""

    process: Process
    port: int
    folder: Path
    databases: tuple[ArqRedis, ArqRedis]

    @property
    def redis(self) -> ArqRedis:
        return self.databases[0]

    @property
    def record(self) -> Path:
        """Where workers record when a job began."""
        return self.folder / "record"

    async def done(self, system: System, enqueued: int) -> int:
        """How many jobs are done, of all that were ever enqueued."""
        count = system.count
        counted = int(await self.databases[count.database].execute_command(*count.command))  # type: ignore[no-untyped-call]
        return enqueued - counted if count.falls else counted

    async def stored(self, system: System) -> int:
        """How many results are kept."""
        if system.results is None:
            return await self.done(system, 0)
        return len({key async for key in self.redis.scan_iter(match=system.results, count=10_000)})


def server_program() -> Path:
    """The embedded Valkey, or what ``REDIS_SERVER`` names."""
    return Path(os.environ.get("REDIS_SERVER") or server_binary())


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """A server on a free port with the project's redis.conf, and nothing in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "record").touch()
        (folder / "users.acl").write_text("user default on nopass ~* &* +@all\n")
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "dir": folder,
            "aclfile": folder / "users.acl",
            "maxmemory": "8gb",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command = [server_program(), ROOT / "redis" / "redis.conf", *arguments]
        with process("server", command, folder, env=os.environ | MALLOC) as started:
            databases = (ArqRedis(port=port, default_queue_name=QUEUE), ArqRedis(port=port, db=1))

            async def answers() -> bool:
                try:
                    return bool(await databases[0].ping())
                except ConnectionError:
                    return False

            await until(answers, [started], within_s=STARTS_WITHIN_S, every_s=0.05)
            yield Server(started, port, folder, databases)
            for redis in databases:
                await redis.aclose()


async def until(
    reached: Callable[[], Awaitable[bool]], processes: list[Process], *, within_s: float, every_s: float
) -> None:
    """Look again and again, until it is reached; raise ``Failed`` where a process ends or time runs out before."""
    deadline = time.monotonic() + within_s
    while not await reached():
        for each in processes:
            each.check()
        if time.monotonic() > deadline:
            raise Failed(f"not done within {within_s:g} s")
        await asyncio.sleep(every_s)


def _command(role: str, server: Server, system: System, slots: int) -> list[Any]:
    python = python_of(system.lock)
    return [python, "-m", "benchmarks.peers", system.peer, role, str(server.port), str(slots), server.record]


@contextlib.contextmanager
def workers(server: Server, system: System, *, count: int = 1, slots: int | None = None) -> Iterator[list[Process]]:
    """Worker processes of a system."""
    command = _command("work", server, system, slots or system.slots)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(process(f"worker-{number}", command, server.folder)) for number in range(count)]


@dataclass
class Producer:
    """A producer, which does as it is asked."""

    process: Process

    async def ask(self, *words: object, within_s: float) -> Any:
        """Give it a command, and wait for what it answers."""
        pipes = self.process.popen
        if pipes.stdin is None or pipes.stdout is None:
            raise Failed("producer: not started with pipes")
        pipes.stdin.write(" ".join(str(word) for word in words) + "\n")
        pipes.stdin.flush()
        try:
            line = await asyncio.wait_for(asyncio.to_thread(pipes.stdout.readline), within_s)
        except TimeoutError:
            raise Failed(f"producer: no answer to {words[0]} within {within_s:g} s") from None
        if not line:
            pipes.wait(ENDS_WITHIN_S)
            self.process.check()
        return json.loads(line)


@contextlib.contextmanager
def producer(server: Server, system: System) -> Iterator[Producer]:
    """A producer process of a system."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = _command("produce", server, system, system.slots)
    with process("producer", command, server.folder, **pipes) as started:
        yield Producer(started)
