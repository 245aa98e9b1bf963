"""The runtime refuses an arq whose internals it does not know."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

IMPORT = """
import importlib.metadata
importlib.metadata.version = lambda name: {version!r}
import aegis_worker
"""


@pytest.mark.parametrize(("version", "good"), [("0.28.0", True), ("0.28.7", True), ("0.27.0", False), ("0.280", False)])
def test_only_the_arq_that_it_was_written_against_is_taken(version: str, good: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(version=version)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    refusal = f"ImportError: aegis_worker needs arq 0.28, because it uses internals of it; this is arq {version}"
    assert (done.returncode == 0, refusal in done.stderr) == (good, not good), done.stderr
