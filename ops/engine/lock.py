"""The lock of an environment. Two changes at a time could make two networks of one name, or two CAs."""

import fcntl
import getpass
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..config import ROOT
from .terminal import say

FOLDER = ROOT / ".local"
POLL_S = 0.5


@contextmanager
def alone(environment: str, command: str) -> Iterator[None]:
    """Wait until nobody else changes the environment's stack, and print who does.

    The kernel releases the lock when the process that holds it ends, so no old lock can remain. If the last change was
    interrupted, a line says so, because it may be half done.
    """
    file = _acquire(environment)
    try:
        if left := _read(file):
            say(f"the last change of ENV={environment}, {_described(left)}, was interrupted")
        _write(file, json.dumps({"command": command, "by": user(), "pid": os.getpid(), "since": time.time()}))
        yield
        _write(file, "")
    except (Exception, SystemExit):
        _write(file, "")  # it has said why it failed; after an interruption, the next change says so
        raise
    finally:
        file.close()


def holder(environment: str) -> str | None:
    """Return who changes the stack now, for a person to read."""
    try:
        with _path(environment).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _described(_read(_path(environment).open()))
    return None


def left(environment: str) -> str | None:
    """Return whose change was interrupted, for a person to read. None if another change has ended since."""
    path = _path(environment)
    if not path.exists() or holder(environment):
        return None
    with path.open() as file:
        record = _read(file)
    return _described(record) if record else None


def break_(environment: str) -> str | None:
    """Break the lock, so that others can change the stack. Return who had it."""
    had = holder(environment)
    _path(environment).unlink(missing_ok=True)
    return had


def user() -> str:
    """Return who types the command. With ``sudo`` it is the user who typed that."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def _acquire(environment: str) -> IO[str]:
    path = _path(environment)
    path.parent.mkdir(exist_ok=True)
    waits = False
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file  # and nobody has broken the lock in between
        except BlockingIOError:
            if not waits:
                say(
                    f"ENV={environment} is being changed: {_described(_read(file))}; waiting "
                    f"(`make unlock ENV={environment}` breaks the lock)"
                )
            waits = True
            time.sleep(POLL_S)
        file.close()


def _path(environment: str) -> Path:
    return FOLDER / f"{environment}.lock"


def _read(file: IO[str]) -> dict[str, object] | None:
    file.seek(0)
    with suppress(ValueError):
        found = json.loads(file.read())
        return found if isinstance(found, dict) else None
    return None


def _write(file: IO[str], text: str) -> None:
    with suppress(OSError):  # the disk is full: the lock still has to work, for the command that makes room
        file.truncate(0)
        file.write(text)
        file.flush()


def _described(record: dict[str, object] | None) -> str:
    if record is None:
        return "somebody has just begun"
    age = time.time() - float(str(record["since"]))
    return f"{record['command']} by {record['by']}, process {record['pid']}, since {age:.0f} s"
