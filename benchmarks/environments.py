"""A virtual environment for each peer, made from its lock file on first use and again when that changes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ops.config import ROOT
from ops.local import FOLDER

ENVIRONMENTS = FOLDER / "benchmarks"
LOCKS = ROOT / "benchmarks" / "requirements"


def python_of(lock: str | None) -> Path:
    """The Python that has what ``benchmarks/requirements/LOCK.txt`` locks; this one for None."""
    if lock is None:
        return Path(sys.executable)
    source, folder = LOCKS / f"{lock}.txt", ENVIRONMENTS / lock
    installed, python = folder / "installed.txt", folder / "bin" / "python"
    if not installed.exists() or installed.read_bytes() != source.read_bytes():
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        install: list[str | Path] = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        subprocess.run([*install, "--python", python, "--requirement", source], check=True)
        shutil.copy(source, installed)
    return python


def locked_version(lock: Path, package: str) -> str:
    """Major and minor version of a package in a lock file."""
    found = re.search(rf"^{re.escape(package)}==(\d+\.\d+)", lock.read_text(), re.MULTILINE)
    if not found:
        raise LookupError(f"{lock} locks no {package}")
    return found[1]
