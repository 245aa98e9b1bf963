"""The one way in which commands are run: in the checkout's folder, with the caller's environment."""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..config import ROOT, OpsError

TOO_LONG, NOT_INSTALLED = 124, 127  #: exit codes, as those of a shell

Variables = Mapping[str, str]  #: of the command's environment, beside and above the caller's


def run(
    argv: Sequence[str], variables: Variables | None = None, *, quiet: bool = False, stdin: IO[bytes] | None = None
) -> int:
    """Run a command and return its exit code. Its output is the caller's own; if ``quiet``, only its errors are."""
    stdout = subprocess.DEVNULL if quiet else None
    return subprocess.run(argv, cwd=ROOT, env=_all(variables), stdin=stdin, stdout=stdout, check=False).returncode


def ask(
    argv: Sequence[str],
    variables: Variables | None = None,
    *,
    text: str = "",
    within_s: float | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets ``text``, and return what it prints. It never raises: exit codes tell what failed."""
    try:
        return subprocess.run(
            argv,
            cwd=folder or ROOT,
            env=_all(variables),
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, TOO_LONG, "", f"`{argv[0]}` gives no answer within {within_s} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, NOT_INSTALLED, "", f"{argv[0]} is not installed")


def output(argv: Sequence[str], variables: Variables | None = None) -> str:
    """Return what a command prints. Raises ``OpsError`` with the command's own message if it fails."""
    done = ask(argv, variables)
    if done.returncode:
        raise OpsError(done.stderr.strip() or f"{shlex.join(argv)}: exit code {done.returncode}")
    return done.stdout


@contextmanager
def pipe(
    argv: Sequence[str], variables: Variables | None = None, *, session: bool = False, **ends: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the caller uses its ``stdin`` or ``stdout``. Raises ``OpsError`` if it fails.

    A command that starts others gets a ``session`` of its own, so that all of them end together.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=_all(variables), stderr=errors, start_new_session=session, **ends
        )
        try:
            with suppress(BrokenPipeError):  # its own message says why it ended
                yield process
                if process.stdin:
                    process.stdin.close()
            code = process.wait()
        finally:
            if process.poll() is None:
                if session:
                    os.killpg(process.pid, signal.SIGTERM)  # it removes what it has made so far
                else:
                    process.kill()
                process.wait()
            for end in filter(None, (process.stdin, process.stdout)):
                with suppress(BrokenPipeError):
                    end.close()
        if code:
            errors.seek(0)
            raise OpsError(errors.read().decode(errors="replace").strip() or f"{argv[0]}: exit code {code}")


def _all(variables: Variables | None) -> dict[str, str]:
    return {**os.environ, **(variables or {})}
