"""Redis's data, handled by redis/data.sh in a container of its own: taken, counted, made ready, exchanged.

Nothing here touches a Redis that runs. New data is made ready beside Redis's own, in the same volume, and takes its
place when two folders change their names. A rehearsal counts nothing: its counts are None.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO

from ..config import ROOT, OpsError
from ..engine import commands
from ..engine.stack import Stack
from .counts import Counts, differences


def run(stack: Stack, *steps: str, **variables: str) -> str:
    """Run steps of redis/data.sh with the stack's REDIS_IMAGE, and return what they print."""
    argv = commands.redis_apart(stack.environment, _name(stack), steps, stdin=False, **variables)
    with _last_line_of_error():
        return stack.take(argv).strip()


def end_others(stack: Stack) -> None:
    """End what a command that was interrupted has left running."""
    with suppress(OpsError):  # there is nothing to end
        stack.take(commands.remove_all("container", [_name(stack)]))


def count_snapshot(stack: Stack) -> tuple[str, Counts | None]:
    """Take the last snapshot that Redis has saved. Return the version of its format, and its counts."""
    printed = run(stack, "clear", "take_snapshot", "survey")
    return printed.partition("\n")[0].removeprefix("REDIS").lstrip("0"), _counts(printed)


def count_current(stack: Stack) -> Counts | None:
    """Take what a Redis that was stopped has left, and return its counts."""
    return _counts(run(stack, "take_current", "survey"))


def make_ready(
    stack: Stack, *first: str, portable: bool = False, delay_ms: int = 0, swap: tuple[str, str] | None = None
) -> Counts | None:
    """Load what was taken with the stack's REDIS_IMAGE, and write it again. Return its counts.

    :param first: steps to run before
    :param portable: write it as commands, which servers of any version read
    :param delay_ms: how much later keys are to expire
    :param swap: two databases that are to change places
    """
    variables = {"RDB": "no" if portable else "yes", "DELAY": str(delay_ms), "SWAP": " ".join(swap or ())}
    return _counts(run(stack, *first, "make_ready", **variables))


@contextmanager
def packed(stack: Stack) -> Iterator[IO[bytes]]:
    """Give what was taken, as a tar to read. It is removed on the way."""
    argv = commands.redis_apart(stack.environment, _name(stack), ["pack"], stdin=False)
    with _last_line_of_error(), stack.pipe(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout  # noqa: S101
        yield process.stdout


@contextmanager
def unpacking(stack: Stack) -> Iterator[IO[bytes]]:
    """Take a tar that is written to the file that this gives."""
    argv = commands.redis_apart(stack.environment, _name(stack), ["clear", "take_archive"], stdin=True)
    with _last_line_of_error(), stack.pipe(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin  # noqa: S101
        yield process.stdin


def is_exchanged(stack: Stack) -> bool:
    """Return whether Redis has the new data, and the old data is still there."""
    return run(stack, "is_exchanged") == "yes"


def live_counts(stack: Stack) -> Counts | None:
    """Return the counts of the Redis that runs. Meanwhile it answers nobody else."""
    script = (ROOT / "redis" / "survey.lua").read_text()
    return _counts(stack.take(commands.redis_cli(stack.environment, ["EVAL", script, "0", "0"], terminal=False)))


def must_match(stack: Stack, expected: Counts | None, found: Counts | None, what: str, *, more: bool = False) -> None:
    """Raise ``OpsError`` if counts are not as expected."""
    stack.change(f"compare the counts of {what}", partial(_must_match, expected, found, what, more))


def _must_match(expected: Counts | None, found: Counts | None, what: str, more: bool) -> None:
    if wrong := differences(expected, found, more=more):
        raise OpsError(f"{what} differs: {'; '.join(wrong)}")


@contextmanager
def _last_line_of_error() -> Iterator[None]:
    """Leave out what Compose says of the container. The last line is the reason of the failure."""
    try:
        yield
    except OpsError as error:
        raise OpsError(str(error).splitlines()[-1]) from None


def _counts(printed: str) -> Counts | None:
    counts: Counts | None = json.loads(printed.splitlines()[-1]) if printed else None
    return counts


def _name(stack: Stack) -> str:
    return f"{stack.project}-redis-apart"
