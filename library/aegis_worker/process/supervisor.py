"""The parent of the worker processes. It starts ``WORKER_PROCESSES`` of them, 1 by default, for each queue.

It passes signals on to them. When one ends, it stops the others and ends, too. So the restart policy restarts the
whole container from a known state. With ``APP_ENV=dev`` it restarts its children when the code changes, because only a
new process imports all code again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path

from aegis_worker.project import Project

NOT_STARTED = 2  #: exit code of a child that cannot start, because of a setting or of Redis
RESTART_S = 3  #: in dev, the wait before such a child is restarted


class Supervisor:
    """Runs the worker processes of ``queues`` while ``run()`` runs."""

    def __init__(self, project: Project, queues: Sequence[str]) -> None:
        self._project = project
        self.commands = [
            (sys.executable, "-m", "aegis_worker.process.serve", queue, str(number))
            for queue in queues
            for number in range(1, project.config.WORKER_PROCESSES + 1)
        ]
        self.children: list[Process] = []
        self.stopping = asyncio.Event()

    async def run(self) -> int:
        """Return the exit code: 0 after a signal and a stop without errors, else the code of the child that ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        changes = asyncio.create_task(self._watch()) if self._project.config.APP_ENV == "dev" else None
        stopped = asyncio.create_task(self.stopping.wait())
        while True:
            ends = await self._start()
            waited = [*ends, stopped] if changes is None else [*ends, stopped, changes]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if changes and not stopped.done():
                # A syntax error, for example, is fixed by the next change. Redis comes back by itself.
                if not changes.done():
                    wait_s = RESTART_S if any(end.done() and end.result() == NOT_STARTED for end in ends) else None
                    _log(f"a worker ended: waiting for a change of the code{f', or {wait_s} s' if wait_s else ''}")
                    await asyncio.wait([stopped, changes], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if changes.done():
                    _log(f"{changes.result()} changed: restarting")
                    changes = asyncio.create_task(self._watch())
            ended = [end.result() for end in ends if end.done()]
            if not stopped.done():
                self._signal(signal.SIGTERM)
            codes = await asyncio.gather(*ends)
            if stopped.done():
                # Before a child handles signals, a signal ends it with another code.
                return max(int(code not in (0, -signal.SIGTERM, -signal.SIGINT)) for code in codes)
            if changes is None:
                _log(f"a worker ended with code {ended[0]}: stopping")
                return ended[0] if ended[0] > 0 else 1

    async def _start(self) -> list[asyncio.Task[int]]:
        self._reset_beats()
        # With a session of their own, they do not get Ctrl-C from the terminal. The parent passes it on once.
        self.children = [
            await asyncio.create_subprocess_exec(*command, start_new_session=True) for command in self.commands
        ]
        return [asyncio.create_task(child.wait()) for child in self.children]

    def _reset_beats(self) -> None:
        """Write an old beat file for each child, so that the health check waits for the first beat of each."""
        if folder := os.environ.get("WORKER_BEAT_DIR"):
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir(parents=True)
            for *_, queue, number in self.commands:
                beat = Path(folder, f"{queue}-{number}")
                beat.touch()
                os.utime(beat, (0, 0))

    async def _watch(self) -> str:
        """Wait for a change of the code. Return the name of a file that changed."""
        from watchfiles import PythonFilter, awatch

        folders = self._project.folders
        async for changed in awatch(*folders, watch_filter=PythonFilter(extra_extensions=[".lua"])):
            file = Path(next(iter(changed))[1])
            return next(
                (str(file.relative_to(folder.parent)) for folder in folders if folder in file.parents), str(file)
            )
        raise AssertionError("unreachable: watchfiles does not end by itself")

    def _stop(self, number: int) -> None:
        self.stopping.set()
        self._signal(number)

    def _signal(self, number: int) -> None:
        for child in self.children:
            if child.returncode is None:
                child.send_signal(number)


def _log(text: str) -> None:
    print(f"supervisor: {text}", flush=True)


def run(project: Project, queues: Sequence[str]) -> int:
    """Serve queues until a signal, or until a child ends. Return the exit code.

    :param queues: their short names
    """
    return asyncio.run(Supervisor(project, queues).run())
