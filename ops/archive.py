"""The file of a backup: a tar of the manifest, Redis's data, the configuration, and the checksums of them all.

It is written under a name of its own and renamed when it is whole; encrypted, nothing of it is on disk in the clear.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .configuration import ROOT, ConfigurationError
from .stack import Stack

FOLDER = ROOT / "backups"
FORMAT = 1
MANIFEST, SUMS, DATA, CONFIG = "manifest.json", "SHA256SUMS", "data", "config"
_DATA_FILE = re.compile(rf"{DATA}/appendonlydir/[^/]+")
_DATE = r"\d{8}T\d{6}Z"
_ENDS = {"BACKUP_AGE_RECIPIENT": ".age", "BACKUP_GPG_RECIPIENT": ".gpg"}


def path(stack: Stack, at: float, kind: str = "") -> Path:
    """Return the archive's path: ``backups/prod-20261124T120000Z.tar``, ``.age`` or ``.gpg`` behind where encrypted."""
    end = next((end for variable, end in _ENDS.items() if stack.environment.values[variable]), "")
    return FOLDER / f"{stack.name}-{kind}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}.tar{end}"


def need_encryption(stack: Stack) -> None:
    """Raise ``ConfigurationError`` where archives are to be encrypted, and the program is missing."""
    for variable, end in _ENDS.items():
        if stack.environment.values[variable]:
            _need(end[1:], f"{variable} is set")


def past(environment: str) -> list[Path]:
    """Return an environment's backups, the latest first; not what was replaced."""
    name = re.compile(rf"{re.escape(environment)}-{_DATE}\.tar(\.age|\.gpg)?")
    return sorted((file for file in FOLDER.glob("*") if name.fullmatch(file.name)), reverse=True)


def write(stack: Stack, file: Path, manifest: Mapping[str, Any], data: IO[bytes], config: Mapping[str, bytes]) -> None:
    """Write an archive, whole or not at all; ``data`` is a tar."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for left in FOLDER.glob(f"{stack.name}-*.partial"):
        left.unlink()
    partial = file.with_name(file.name + ".partial")
    partial.touch(mode=0o600)
    try:
        with _encrypted(stack, partial, file.suffix) as out, tarfile.open(fileobj=out, mode="w|") as archive:
            sums = {MANIFEST: _add(archive, MANIFEST, json.dumps(manifest, indent=1).encode())}
            with tarfile.open(fileobj=data, mode="r|") as files:
                for member in files:
                    if content := files.extractfile(member):
                        sums[f"{DATA}/{member.name}"] = _copy(archive, f"{DATA}/{member.name}", member.size, content)
            sums |= {name: _add(archive, name, text) for name, text in config.items()}
            _add(archive, SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def check(stack: Stack, file: Path, identity: str) -> dict[str, Any]:
    """Read an archive to its end; return its manifest. Raises ``ConfigurationError`` where it is not whole or known."""
    found: dict[str, str] = {}
    texts = {MANIFEST: b"", SUMS: b""}
    try:
        with _members(stack, file, identity) as members:
            for member, content in members:
                digest = hashlib.sha256()
                while block := content.read(1 << 20):
                    digest.update(block)
                    if member.name in texts:
                        texts[member.name] += block
                found[member.name] = digest.hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigurationError(f"{file} is damaged, or no backup: {error}") from None
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in texts[SUMS].decode().splitlines())}
    found.pop(SUMS, None)
    if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ConfigurationError(f"{file} is damaged: the checksum of {', '.join(wrong)} does not match")
    manifest: dict[str, Any] = json.loads(texts[MANIFEST] or "{}")
    if manifest.get("format") != FORMAT:
        raise ConfigurationError(f"{file} has format {manifest.get('format')}; this version reads {FORMAT}")
    return manifest


def unpack(stack: Stack, file: Path, identity: str, into: IO[bytes]) -> None:
    """Write Redis's data of an archive, as a tar."""
    with _members(stack, file, identity) as members, tarfile.open(fileobj=into, mode="w|") as data:
        for member, content in members:
            if _DATA_FILE.fullmatch(member.name):
                _copy(data, member.name.removeprefix(f"{DATA}/"), member.size, content)


def configuration_of(stack: Stack) -> dict[str, bytes]:
    """Return the files that make the stack, secrets left out, by their names in an archive."""
    files = [*stack.environment.files, *stack.environment.layers, ROOT / "compose" / "common.yml"]
    files += [ROOT / "redis" / "redis.conf", ROOT / "redis" / "users.acl.template"]
    return {f"{CONFIG}/{file.relative_to(ROOT)}": file.read_bytes() for file in files}


def _add(archive: tarfile.TarFile, name: str, text: bytes) -> str:
    return _copy(archive, name, len(text), io.BytesIO(text))


def _copy(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> str:
    """Add a file to a tar; return its checksum."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(time.time()), 0o600
    reader = _Summed(content)
    archive.addfile(member, reader)  # type: ignore[arg-type]
    return reader.digest.hexdigest()


class _Summed:
    """A file to read, and the checksum of what was read."""

    def __init__(self, content: IO[bytes]) -> None:
        self.content, self.digest = content, hashlib.sha256()

    def read(self, size: int) -> bytes:
        block = self.content.read(size)
        self.digest.update(block)
        return block


@contextmanager
def _members(stack: Stack, file: Path, identity: str) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    with _decrypted(stack, file, identity) as source, tarfile.open(fileobj=source, mode="r|") as archive:
        yield ((member, content) for member in archive if (content := archive.extractfile(member)))


@contextmanager
def _encrypted(stack: Stack, file: Path, end: str) -> Iterator[IO[bytes]]:
    values = stack.environment.values
    commands = {
        ".age": ["age", "--encrypt", "--recipient", values["BACKUP_AGE_RECIPIENT"]],
        # Whom it is for is in our own configuration: no other key's signature on it is asked for.
        ".gpg": [
            *("gpg", "--batch", "--trust-model", "always", "--encrypt"),
            *("--recipient", values["BACKUP_GPG_RECIPIENT"]),
        ],
    }
    with file.open("wb") as out:
        if end not in commands:
            yield out
            return
        with stack.pipe(commands[end], stdin=subprocess.PIPE, stdout=out) as process:
            assert process.stdin  # noqa: S101
            yield process.stdin


@contextmanager
def _decrypted(stack: Stack, file: Path, identity: str) -> Iterator[IO[bytes]]:
    commands = {".age": ["age", "--decrypt", "--identity", identity], ".gpg": ["gpg", "--quiet", "--decrypt"]}
    with file.open("rb") as source:
        if file.suffix not in commands:
            yield source
            return
        _need(file.suffix[1:], f"{file.name} is encrypted")
        if file.suffix == ".age" and not identity:
            raise ConfigurationError(f"{file.name} is encrypted with age: AGE_IDENTITY=… names the file with the key")
        with stack.pipe(commands[file.suffix], stdin=source, stdout=subprocess.PIPE) as process:
            assert process.stdout  # noqa: S101
            yield process.stdout
            process.stdout.read()  # the tar has ended, what it is padded with not yet


def _need(program: str, why: str) -> None:
    if shutil.which(program) is None:
        raise ConfigurationError(f"{why}, and {program} is not installed here: apt-get install {program}")
