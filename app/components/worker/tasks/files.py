"""The files of tasks. All of them are in one folder, ``WORKER_DATA_DIR``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from app.core.config import settings


def root() -> Path:
    """Return the data folder, with no links in its path. It is made if it is missing."""
    settings.WORKER_DATA_DIR.mkdir(parents=True, exist_ok=True)
    return settings.WORKER_DATA_DIR.resolve()


def inside(path: str) -> Path:
    """Return the absolute path of a path that is relative to the data folder. It may not exist yet.

    Raises ``ValueError``, which names the path, if it is absolute, contains ``..``, or leaves the folder by a link.
    """
    folder = root()
    try:
        resolved = (folder / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL
        raise ValueError(f"path {path!r} cannot be resolved: {error}") from error
    if Path(path).is_absolute() or ".." in Path(path).parts or not resolved.is_relative_to(folder):
        raise ValueError(f"path {path!r} must be a relative path inside the data folder")
    return resolved


def tmp() -> Path:
    """Return the folder for temporary files. The task ``cleanup_temp_files`` deletes old files in it.

    Raises ``ValueError`` if it is a link, because files elsewhere would be deleted.
    """
    folder = root() / "tmp"
    if folder.is_symlink():
        raise ValueError(f"{folder} must be a folder, not a link")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a new file to write. When the block ends, the new file replaces ``target`` in one step.

    If the block raises, ``target`` does not change, and the new file is deleted. The new file is in ``tmp()``, so that
    ``cleanup_temp_files`` deletes it if the process is killed.
    """
    partial = tmp() / f"{uuid4().hex}{target.suffix}"
    try:
        yield partial
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
