"""Sealed archives: tar files with the checksum of each part. Backups, bundles and bug reports are such archives.

An archive is written under a name of its own, and gets its name when it is whole. The checksums are its last part, in
the form that ``sha256sum --check`` reads.
"""

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Literal

from ..config import OpsError

SUMS = "SHA256SUMS"
PARTIAL = ".partial"

Part = tuple[tarfile.TarInfo, IO[bytes]]
Through = Callable[[IO[bytes]], AbstractContextManager[IO[bytes]]]  #: encrypts what is written, or decrypts it


class Damaged(OpsError):
    """An archive is not as it was written."""


class Writer:
    """An archive that is being written."""

    def __init__(self, tar: tarfile.TarFile, folder: str) -> None:
        self._tar, self._folder = tar, folder
        self._sums: dict[str, str] = {}

    def add(self, name: str, content: bytes | IO[bytes], *, size: int = 0, mode: int = 0o600) -> None:
        """Add a part. A file that is read on the way, such as a pipe, needs the ``size``."""
        if isinstance(content, bytes):
            size, content = len(content), io.BytesIO(content)
        entry = tarfile.TarInfo(f"{self._folder}{name}")
        entry.size, entry.mtime, entry.mode = size, int(time.time()), mode
        reader = _Hashed(content)
        self._tar.addfile(entry, reader)  # type: ignore[arg-type]
        self._sums[name] = reader.digest.hexdigest()

    def seal(self) -> None:
        self.add(SUMS, "".join(f"{digest}  {name}\n" for name, digest in self._sums.items()).encode())


class _Hashed:
    """A file to read, and the checksum of what was read."""

    def __init__(self, content: IO[bytes]) -> None:
        self.content, self.digest = content, hashlib.sha256()

    def read(self, size: int) -> bytes:
        block = self.content.read(size)
        self.digest.update(block)
        return block


@contextmanager
def writing(
    path: Path,
    *,
    kind: Literal["w|", "w|gz"] = "w|",
    folder: str = "",
    mode: int = 0o600,
    through: Through = nullcontext,
    approve: Callable[[Path], None] = lambda partial: None,
) -> Iterator[Writer]:
    """Write an archive, whole or not at all.

    :param folder: what comes before each name
    :param approve: looks at the whole archive before it gets its name, and may raise
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        with (
            os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file,
            through(file) as out,
            tarfile.open(fileobj=out, mode=kind) as tar,
        ):
            writer = Writer(tar, folder)
            yield writer
            writer.seal()
        approve(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def reading(
    path: Path, *, kind: Literal["r|", "r|gz"] = "r|", through: Through = nullcontext
) -> Iterator[Iterator[Part]]:
    """Give the parts of an archive, in their order."""
    with path.open("rb") as file, through(file) as source, tarfile.open(fileobj=source, mode=kind) as tar:
        yield ((entry, content) for entry in tar if (content := tar.extractfile(entry)))


def check(path: Path, text: str, *, through: Through = nullcontext) -> bytes:
    """Read an archive to its end, and return the part that is named ``text``.

    Raises ``Damaged`` if a part is missing, is not expected, or is not as it was written.
    """
    found: dict[str, str] = {}
    kept = {text: b"", SUMS: b""}
    try:
        with reading(path, through=through) as parts:
            for entry, content in parts:
                digest = hashlib.sha256()
                while block := content.read(1 << 20):
                    digest.update(block)
                    if entry.name in kept:
                        kept[entry.name] += block
                found[entry.name] = digest.hexdigest()
        lines = kept[SUMS].decode().splitlines()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise Damaged(str(error)) from None
    if found.pop(SUMS, None) is None:
        raise Damaged(f"it has no {SUMS}")
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise Damaged(f"the checksum of {', '.join(wrong)} does not match")
    return kept[text]
