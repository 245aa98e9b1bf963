"""The secrets of an environment: made once, as files, in a folder that only its owner can enter."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

PASSWORD = "redis_password"  # noqa: S105 - a file's name
ACL = "redis_acl"
SIGNING_KEY = "worker_signing_key"


def ensure(folder: Path, template: Path) -> bool:
    """Make what is missing of a folder's secrets; return whether anything was.

    ``template`` is the ACL file with ``{password_sha256}`` where the hash goes: Redis never sees a password in the
    clear. The files are open to read, since containers read them as other users; the folder is not, which closes
    them to everybody else on the host. There is no signing key unless somebody writes one into its file.
    """
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    password_file, acl_file = folder / PASSWORD, folder / ACL
    made = not password_file.exists()
    if made:
        _write(password_file, secrets.token_urlsafe(32))
    if not (signing_key := folder / SIGNING_KEY).exists():
        signing_key.touch(mode=0o644)
        made = True
    password = password_file.read_text().strip()
    # Redis takes no comments in the file itself.
    users = "".join(line for line in template.read_text().splitlines(keepends=True) if not line.startswith("#"))
    acl = users.format(password_sha256=hashlib.sha256(password.encode()).hexdigest())
    if not acl_file.exists() or acl_file.read_text() != acl:
        _write(acl_file, acl)
        made = True
    return made


def _write(file: Path, text: str) -> None:
    # In place where it exists: a container's mount holds on to the file that it was started with.
    file.touch(mode=0o444)
    file.chmod(0o644)
    file.write_text(text)
    file.chmod(0o444)
