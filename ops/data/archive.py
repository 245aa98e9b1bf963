"""The file of a backup: a sealed archive of the manifest, Redis's data and the configuration.

If it is encrypted, no part of it is ever on disk in the clear.
"""

import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..config import ROOT, OpsError
from ..engine import sealed
from ..engine.stack import Stack

FOLDER = ROOT / "backups"
FORMAT = 1
MANIFEST, DATA, CONFIG = "manifest.json", "data", "config"
_DATA_FILE = re.compile(rf"{DATA}/appendonlydir/[^/]+")
_DATE = r"\d{8}T\d{6}Z"
_PROGRAMS = {"BACKUP_AGE_RECIPIENT": "age", "BACKUP_GPG_RECIPIENT": "gpg"}


def path(stack: Stack, at: float, kind: str = "") -> Path:
    """Return a new archive's path, such as ``backups/prod-20261124T120000Z.tar``; ``.age`` or ``.gpg`` may follow."""
    end = "".join(f".{program}" for _, program in _encryption(stack))
    return FOLDER / f"{stack.name}-{kind}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}.tar{end}"


def need_encryption(stack: Stack) -> None:
    """Raise ``OpsError`` if archives are to be encrypted, and the program is missing."""
    for variable, program in _encryption(stack):
        _need(program, f"{variable} is set")


def past(environment: str) -> list[Path]:
    """Return an environment's backups, the latest first. Archives of replaced data do not count."""
    name = re.compile(rf"{re.escape(environment)}-{_DATE}\.tar(\.age|\.gpg)?")
    return sorted((file for file in FOLDER.glob("*") if name.fullmatch(file.name)), reverse=True)


def write(stack: Stack, file: Path, manifest: Mapping[str, Any], data: IO[bytes], config: Mapping[str, bytes]) -> None:
    """Write an archive, whole or not at all. ``data`` is a tar."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for left in FOLDER.glob(f"{stack.name}-*{sealed.PARTIAL}"):
        left.unlink()
    with sealed.writing(file, through=partial(_encrypted, stack, file.suffix)) as archive:
        archive.add(MANIFEST, json.dumps(manifest, indent=1).encode())
        with tarfile.open(fileobj=data, mode="r|") as files:
            for member in files:
                if content := files.extractfile(member):
                    archive.add(f"{DATA}/{member.name}", content, size=member.size)
        for name, text in config.items():
            archive.add(name, text)


def check(stack: Stack, file: Path, identity: str) -> dict[str, Any]:
    """Read an archive to its end, and return its manifest. Raises ``OpsError`` if it is damaged, or of another kind."""
    try:
        text = sealed.check(file, MANIFEST, through=partial(_decrypted, stack, file, identity))
    except sealed.Damaged as error:
        raise OpsError(f"{file} is damaged, or is not a backup: {error}") from None
    manifest: dict[str, Any] = json.loads(text or "{}")
    if manifest.get("format") != FORMAT:
        raise OpsError(f"{file} has format {manifest.get('format')}; this version reads {FORMAT}")
    return manifest


def unpack(stack: Stack, file: Path, identity: str, into: IO[bytes]) -> None:
    """Write Redis's data from an archive, as a tar."""
    decrypted = partial(_decrypted, stack, file, identity)
    with sealed.reading(file, through=decrypted) as parts, tarfile.open(fileobj=into, mode="w|") as data:
        for entry, content in parts:
            if _DATA_FILE.fullmatch(entry.name):
                member = tarfile.TarInfo(entry.name.removeprefix(f"{DATA}/"))
                member.size, member.mtime, member.mode = entry.size, entry.mtime, 0o600
                data.addfile(member, content)


def configuration_of(stack: Stack) -> dict[str, bytes]:
    """Return the files that make the stack, by their names in an archive. Secrets are not among them."""
    shared = ("compose/common.yml", "redis/redis.conf", "redis/users.acl.template")
    files = [*stack.environment.files, *(ROOT / name for name in (*stack.environment.layers, *shared))]
    return {f"{CONFIG}/{file.relative_to(ROOT)}": file.read_bytes() for file in files}


def _encryption(stack: Stack) -> list[tuple[str, str]]:
    """Return the variable that names a recipient, with the program. There is one at most."""
    return [(variable, program) for variable, program in _PROGRAMS.items() if stack.environment.values[variable]]


@contextmanager
def _encrypted(stack: Stack, suffix: str, out: IO[bytes]) -> Iterator[IO[bytes]]:
    recipient = "".join(stack.environment.values[variable] for variable, _ in _encryption(stack))
    commands = {
        ".age": ["age", "--encrypt", "--recipient", recipient],
        # Our own configuration names the recipient, so gpg need not find a signature of another key on it.
        ".gpg": ["gpg", "--batch", "--trust-model", "always", "--encrypt", "--recipient", recipient],
    }
    if suffix not in commands:
        yield out
        return
    with stack.pipe(commands[suffix], stdin=subprocess.PIPE, stdout=out) as process:
        assert process.stdin  # noqa: S101
        yield process.stdin


@contextmanager
def _decrypted(stack: Stack, file: Path, identity: str, source: IO[bytes]) -> Iterator[IO[bytes]]:
    commands = {".age": ["age", "--decrypt", "--identity", identity], ".gpg": ["gpg", "--quiet", "--decrypt"]}
    if file.suffix not in commands:
        yield source
        return
    _need(file.suffix[1:], f"{file.name} is encrypted")
    if file.suffix == ".age" and not identity:
        raise OpsError(f"{file.name} is encrypted with age: AGE_IDENTITY=… names the file with the key")
    with stack.pipe(commands[file.suffix], stdin=source, stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101
        yield process.stdout
        process.stdout.read()  # the tar has ended, but its padding has not


def _need(program: str, why: str) -> None:
    if shutil.which(program) is None:
        raise OpsError(f"{why}, and {program} is not installed here: apt-get install {program}")
