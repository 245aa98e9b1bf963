"""A short fuzz of the decoder, the same each time; `make fuzz` takes longer."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

RUNS = 20_000


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this machine or Python")
def test_no_bytes_do_harm() -> None:
    command = [sys.executable, "-m", "tests.fuzz.decoder", "runs", str(RUNS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert done.stderr.count(f"Done {RUNS} runs") == 3, done.stderr[-3000:]
