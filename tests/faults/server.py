"""A Redis server of one test, which can be killed, and what it has written to its disk."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import hiredis
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from ops.local import server_binary
from tests.conftest import ROOT, free_port

STARTS_WITHIN_S = 20


class Server:
    """The installed redis-server or the embedded Valkey, with the project's redis.conf and ``options``."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.redis = ArqRedis(port=self.port, socket_timeout=10)
        folder.mkdir()
        (folder / "users.acl").write_text("user default on nopass ~* &* +@all\n")
        given = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "aclfile": str(folder / "users.acl"),
            "save": "",
            "auto-aof-rewrite-percentage": "0",  # so that the file has all that ever was
        }
        self._command = [
            shutil.which("redis-server") or str(server_binary()),
            str(ROOT / "redis" / "redis.conf"),
            *(part for name, value in (given | options).items() for part in (f"--{name}", value)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, again where it was killed, and wait until it has read its file and answers."""
        self._process = self._launch()
        deadline = monotonic() + STARTS_WITHIN_S
        while True:
            try:
                await self.redis.ping()
                return
            except (RedisError, OSError) as error:
                if self._process.poll() is not None or monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from error
            await asyncio.sleep(0.02)

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def write_out(self) -> None:
        """Hold writes back until the file has all that was answered.

        With ``everysec`` it may lag behind by two seconds while the disk is slow to sync, which a kill would lose.
        """
        await self.redis.execute_command("CLIENT", "PAUSE", STARTS_WITHIN_S * 1000, "WRITE")
        while (await self.redis.info("persistence"))["aof_buffer_length"]:
            await asyncio.sleep(0.01)

    def pause(self) -> None:
        """Have it answer nothing, with its connections left open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order, so that all of its file is there."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(20)

    def written(self) -> Iterator[list[bytes]]:
        """Yield every write since the server's first start, in order; scripts stand there as what they wrote."""
        files = (self.folder / "appendonlydir").glob("*.incr.aof")
        for path in sorted(files, key=lambda path: int(path.name.split(".")[-3])):
            reader = hiredis.Reader()
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    reader.feed(data)
                    while (command := reader.gets()) is not False:
                        yield command
