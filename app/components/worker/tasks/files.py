"""The files of tasks: all of them below one folder, ``WORKER_DATA_DIR``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from app.core.config import settings


def root() -> Path:
    """Return the data folder, with no links in its path; it is made where it is missing."""
    settings.WORKER_DATA_DIR.mkdir(parents=True, exist_ok=True)
    return settings.WORKER_DATA_DIR.resolve()


def inside(path: str) -> Path:
    """Return where a path, relative to the data folder, leads; it need not exist.

    Raises ``ValueError``, which names the path, where it is absolute, goes up, or leads out over a link.
    """
    folder = root()
    try:
        resolved = (folder / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL
        raise ValueError(f"path {path!r} leads nowhere: {error}") from error
    if Path(path).is_absolute() or ".." in Path(path).parts or not resolved.is_relative_to(folder):
        raise ValueError(f"path {path!r} leads out of the data folder")
    return resolved


def tmp() -> Path:
    """Return the folder of files that no job needs for long; ``cleanup_temp_files`` deletes what is left there.

    Raises ``ValueError`` where it is a link: what is deleted in it would be somebody else's.
    """
    folder = root() / "tmp"
    if folder.is_symlink():
        raise ValueError(f"{folder} must be a folder, not a link")
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a new file to write, which takes the place of ``target`` at once when the block ends.

    Where the block raises, ``target`` stays as it was and the new file is deleted. It lies in ``tmp()``, so that
    one left by a killed process is deleted in time.
    """
    partial = tmp() / f"{uuid4().hex}{target.suffix}"
    try:
        yield partial
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
