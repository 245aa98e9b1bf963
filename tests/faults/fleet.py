"""Worker processes that a scenario starts, signals and replaces; it knows which runs that has cut short."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from tests.conftest import PROJECT, ROOT, eventually

SLOTS = 20
LEASE_S = 2.0
ENDS_WITHIN_S = 20
#: A run that ended so shortly before its worker was struck may not have been stored; a claim whose reply a paused
#: worker had not read begins so shortly after.
GRACE_S = 1.0


@dataclass(frozen=True)
class Disturbance:
    """Jobs that a process ran in this time, which is monotonic, may run once more."""

    pid: int
    begun: float
    ended: float

    def covers(self, pid: int, begun: float, ended: float) -> bool:
        return pid == self.pid and begun <= self.ended + GRACE_S and ended >= self.begun - GRACE_S


@dataclass
class Member:
    process: Process
    options: dict[str, Any]
    log: Path
    handle: int  #: signals go by it, since Popen's own way would reap a process that asyncio waits for
    busy: bool = False  #: a fault is being done to it, or was its end

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stock(self) -> bool:
        return bool(self.options.get("stock"))

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def in_order(self, code: int) -> bool:
        """Whether it may end with this code on SIGTERM, of which one dies that does not hear it yet, or any more."""
        deaf = not self.said("armed") or self.said("closed")
        shut_down = self.log.read_text(errors="replace").count("shut down") == 1
        return self.stock or (code == 0 and shut_down) or (deaf and code == -signal.SIGTERM)

    def said(self, what: str) -> bool:
        return what in self.log.read_text(errors="replace")


class Fleet:
    def __init__(self, folder: Path, rng: Random, *, port: int, ledger: int) -> None:
        self.members: list[Member] = []
        self.disturbances: list[Disturbance] = []
        self.faults = 0
        self._folder = folder
        self._rng = rng
        self._port = port
        self._given: dict[str, Any] = {
            "ledger": ledger,
            "slots": SLOTS,
            "lease": LEASE_S,
            "timeout": 30,
            "drain": 5,
            "hooks": 0,
            "startup": 0,
            "raises": "",
            "socket_timeout": 1,
            "skew": 0,
            "stock": False,
            "blocked_exit": 120,
            "exit_code": 9,
            "log": os.environ.get("FAULTS_LOG", "WARNING"),
        }
        self._started = 0
        folder.mkdir()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self, count: int, **options: Any) -> list[Member]:
        """Start so many, and wait until all of them serve."""
        new = [await self.spawn(**options) for _ in range(count)]
        await eventually(lambda: all(member.said("started") for member in new), ENDS_WITHIN_S)
        return new

    async def spawn(self, port: int | None = None, **options: Any) -> Member:
        """Start one, and do not wait for it. ``port`` is that of a proxy in front of the server."""
        self._started += 1
        name = f"r{self._started}"
        given = self._given | options | {"replica": name}
        log = self._folder / f"{name}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "ENV": "test",
            "AEGIS_PROJECT": PROJECT,
            "REDIS_URL": f"redis://127.0.0.1:{port or self._port}",
            "REDIS_USERNAME": "default",  # of a server that asks for no password
            "REDIS_SOCKET_TIMEOUT": str(given["socket_timeout"]),
            "REDIS_CONNECTION_TIMEOUT": "1",
        }
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.worker", json.dumps(given)),
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
            )
        again = options | ({"port": port} if port else {})
        self.members.append(Member(process, again, log, os.pidfd_open(process.pid)))
        return self.members[-1]

    async def replace(self, member: Member) -> Member:
        return await self.spawn(**member.options)

    def any(self, **options: Any) -> Member | None:
        """Return a random one that nothing is being done to; with ``options``, of those that have them."""
        free = [
            member
            for member in self.members
            if member.alive and not member.busy and options.items() <= (self._given | member.options).items()
        ]
        return self._rng.choice(free) if free else None

    async def finish(self) -> list[str]:
        """Stop those that are left; return which of all ended as they should not have."""
        left = [member for member in self.members if member.alive]
        wrong = [
            f"worker {member.pid} ended by itself with {member.process.returncode}:\n{member.log.read_text()[-3000:]}"
            for member in self.members
            if not member.alive and not member.busy
        ]
        for member, code in zip(left, await asyncio.gather(*map(self.stop, left)), strict=True):
            if not member.in_order(code):
                wrong.append(f"worker {member.pid} ended with {code} on SIGTERM:\n{member.log.read_text()[-3000:]}")
        return wrong

    def stopped(self) -> set[str]:
        """Names of those that ended in good order."""
        return {member.log.stem for member in self.members if member.process.returncode == 0}

    def said(self) -> Counter[str]:
        """Lines of all logs, without their times, less what the jobs themselves ask for."""
        lines = (line for member in self.members for line in member.log.read_text(errors="replace").splitlines())
        return Counter(line.split(" ", 2)[-1] for line in lines if line[:2] == "20" and "runner" not in line)

    async def abandon(self) -> None:
        """Leave no process behind, whatever happened."""
        for member in self.members:
            member.send(signal.SIGKILL)
            await member.process.wait()
            os.close(member.handle)

    # -- faults --------------------------------------------------------------------------------------------------

    def disturb(self, member: Member, begun: float, ended: float = inf) -> None:
        self.disturbances.append(Disturbance(member.pid, begun, ended))

    async def kill(self, member: Member) -> None:
        self.faults += 1
        member.busy = True
        self.disturb(member, monotonic())
        member.send(signal.SIGKILL)
        assert await member.process.wait() == -signal.SIGKILL, f"it had ended before:\n{member.log.read_text()}"

    async def pause(self, member: Member, seconds: float) -> None:
        """SIGSTOP for so long; one that is over before the lease disturbs nothing."""
        self.faults += 1
        member.busy = True
        begun = monotonic()
        member.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            member.send(signal.SIGCONT)
            if seconds > LEASE_S / 2:
                self.disturb(member, begun, monotonic())
            member.busy = False

    async def stop(self, member: Member, *, again_after_s: float | None = None, disturbs: bool = False) -> int:
        """SIGTERM, if asked for a second one, and return the exit code. One that cancels jobs disturbs them."""
        member.busy = True
        if disturbs:
            self.disturb(member, monotonic())
        member.send(signal.SIGTERM)
        if again_after_s is not None:
            await asyncio.sleep(again_after_s)
            member.send(signal.SIGTERM)
        async with asyncio.timeout(ENDS_WITHIN_S):
            while member.stock:  # redis-py may swallow the cancellation by which stock arq stops
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(member.process.wait(), 1)
                member.send(signal.SIGTERM)
            return await member.process.wait()

    async def replace_ended(self, code: int, since_s: float) -> None:
        """For ever, replace those that end by themselves with this exit code; they were disturbed before they did."""
        while True:
            for member in self.members:
                if member.process.returncode == code and not member.busy:
                    member.busy = True
                    self.faults += 1
                    self.disturb(member, monotonic() - since_s)
                    await self.replace(member)
            await asyncio.sleep(0.02)
