"""The parent of the worker processes: ``WORKER_PROCESSES`` of them, 1 by default, for each queue.

It passes signals on, and ends when a child does, so that the restart policy acts on a whole container in one known
state. With ``APP_ENV=dev`` it starts its children anew when the project's code changes: a new process is the
only true re-import.
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

NOT_STARTED = 2  #: exit code of a child that Redis, or a setting, has kept from its start
AGAIN_S = 3  #: in dev, until such a child is started anew


class Supervisor:
    """Runs the children of ``queues`` from ``run()``'s call to its return."""

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
        """Return 0 after a stop that was asked for and went well, else not 0: the code of the child that ended."""
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
                # What does not run, for a syntax error say, is mended by the next change; Redis comes back by itself.
                if not changes.done():
                    wait_s = AGAIN_S if any(end.done() and end.result() == NOT_STARTED for end in ends) else None
                    _say(f"a worker ended: waiting for a change of the code{f', or {wait_s} s' if wait_s else ''}")
                    await asyncio.wait([stopped, changes], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if changes.done():
                    _say(f"{changes.result()} changed: starting anew")
                    changes = asyncio.create_task(self._watch())
            ended = [end.result() for end in ends if end.done()]
            if not stopped.done():
                self._signal(signal.SIGTERM)
            codes = await asyncio.gather(*ends)
            if stopped.done():
                # A signal that comes before a child can handle it ends the child as well.
                return max(int(code not in (0, -signal.SIGTERM, -signal.SIGINT)) for code in codes)
            if changes is None:
                _say(f"a worker ended with code {ended[0]}: stopping")
                return ended[0] if ended[0] > 0 else 1

    async def _start(self) -> list[asyncio.Task[int]]:
        self._reset_beats()
        # A session of their own: Ctrl-C reaches the parent alone, which passes it on once.
        self.children = [
            await asyncio.create_subprocess_exec(*command, start_new_session=True) for command in self.commands
        ]
        return [asyncio.create_task(child.wait()) for child in self.children]

    def _reset_beats(self) -> None:
        """Leave one beat file a child, of long ago, so that the health check waits for the beat of each."""
        if folder := os.environ.get("WORKER_BEAT_DIR"):
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir(parents=True)
            for *_, queue, number in self.commands:
                beat = Path(folder, f"{queue}-{number}")
                beat.touch()
                os.utime(beat, (0, 0))

    async def _watch(self) -> str:
        """Wait for a change of the code; return the name of a file that changed."""
        from watchfiles import PythonFilter, awatch

        folders = self._project.folders
        async for changed in awatch(*folders, watch_filter=PythonFilter(extra_extensions=[".lua"])):
            file = Path(next(iter(changed))[1])
            return next(
                (str(file.relative_to(folder.parent)) for folder in folders if folder in file.parents), str(file)
            )
        raise AssertionError("unreachable: the watch never ends by itself")

    def _stop(self, number: int) -> None:
        self.stopping.set()
        self._signal(number)

    def _signal(self, number: int) -> None:
        for child in self.children:
            if child.returncode is None:
                child.send_signal(number)


def _say(text: str) -> None:
    print(f"supervisor: {text}", flush=True)


def run(project: Project, queues: Sequence[str]) -> int:
    """Serve the queues, by short names, until a signal or until a child ends; return the exit code."""
    return asyncio.run(Supervisor(project, queues).run())
