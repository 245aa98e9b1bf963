"""Redis's data, worked on by redis/data.sh in a container of its own: taken, counted, made ready, exchanged.

Nothing here touches a Redis that runs. What is made ready lies beside Redis's own data, in the same volume, and takes
its place by a change of names.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from . import commands
from .configuration import ROOT, ConfigurationError
from .counts import Counts, differences
from .stack import Stack


def run(stack: Stack, *steps: str, **variables: str) -> str:
    """Run steps of redis/data.sh, on the stack's REDIS_IMAGE; return what they print."""
    argv = commands.redis_apart(stack.environment, _name(stack), steps, stdin=False, **variables)
    with _reason_alone():
        return stack.take(argv).strip()


def end_others(stack: Stack) -> None:
    """End what a command that was cut short has left running."""
    with suppress(ConfigurationError):  # there is none
        stack.take(commands.remove_now(_name(stack)))


def count_snapshot(stack: Stack) -> tuple[str, Counts]:
    """Take the last snapshot that Redis has saved; return the version of its format, and its counts."""
    printed = run(stack, "clear", "take_snapshot", "survey")
    return printed.partition("\n")[0].removeprefix("REDIS").lstrip("0"), _counts(printed)


def count_current(stack: Stack) -> Counts:
    """Take what a Redis that was stopped has left; return its counts."""
    return _counts(run(stack, "take_current", "survey"))


def make_ready(
    stack: Stack, *first: str, portable: bool = False, delay_ms: int = 0, swap: tuple[str, str] | None = None
) -> Counts:
    """Have the stack's REDIS_IMAGE load and write what was taken; return its counts.

    :param first: steps to run before
    :param portable: as commands, which servers of any version read
    :param delay_ms: how much later what expires is to do so
    :param swap: databases that are to change places
    """
    variables = {"RDB": "no" if portable else "yes", "DELAY": str(delay_ms), "SWAP": " ".join(swap or ())}
    return _counts(run(stack, *first, "make_ready", **variables))


@contextmanager
def packed(stack: Stack) -> Iterator[IO[bytes]]:
    """Give what was taken, as a tar to read; after that it is gone."""
    argv = commands.redis_apart(stack.environment, _name(stack), ["pack"], stdin=False)
    with _reason_alone(), stack.pipe(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout  # noqa: S101
        yield process.stdout


@contextmanager
def unpacking(stack: Stack) -> Iterator[IO[bytes]]:
    """Take a tar that is written to."""
    argv = commands.redis_apart(stack.environment, _name(stack), ["clear", "take_archive"], stdin=True)
    with _reason_alone(), stack.pipe(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin  # noqa: S101
        yield process.stdin


def is_exchanged(stack: Stack) -> bool:
    """Whether Redis's data is the new one, and the old one still there."""
    return run(stack, "is_exchanged") == "yes"


def live_counts(stack: Stack) -> Counts:
    """Return the counts of the Redis that runs, which answers nobody else meanwhile."""
    script = (ROOT / "redis" / "survey.lua").read_text()
    return _counts(stack.take(commands.redis_cli(stack.environment, ["EVAL", script, "0", "0"], terminal=False)))


def must_match(expected: Counts, found: Counts, what: str, *, more: bool = False) -> None:
    """Raise ``ConfigurationError`` where counts are not as expected."""
    if wrong := differences(expected, found, more=more):
        raise ConfigurationError(f"{what} differs: {'; '.join(wrong)}")


def now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def _reason_alone() -> Iterator[None]:
    """Leave out what Compose says of the container, above the reason why it failed."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(str(error).splitlines()[-1]) from None


def _counts(printed: str) -> Counts:
    counts: Counts = json.loads(printed.splitlines()[-1]) if printed else {}
    return counts


def _name(stack: Stack) -> str:
    return f"{stack.project}-redis-apart"
