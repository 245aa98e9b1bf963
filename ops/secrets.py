"""The secrets of an environment: made once, as files, in a folder that only its owner can enter."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from .configuration import ConfigurationError

ACL = "redis_acl"
#: Redis's users, each with the file that has its password. The worker's is REDIS_PASSWORD, whence the short name.
USERS = {
    "worker": "redis_password",
    "producer": "redis_producer_password",
    "monitor": "redis_monitor_password",
    "admin": "redis_admin_password",
}
_PASSWORDS = frozenset(USERS.values())
RETIRED = ".retired"  #: + a password's file: the hashes of those before, for as long as they are valid
SIGNING_KEY = "worker_signing_key"


def ensure(folder: Path, template: Path) -> bool:
    """Make what is missing of a folder's secrets; return whether anything was.

    ``template`` is the ACL file with ``{user}`` where the hashes go: Redis never sees a password in the clear. The
    files are open to read, since containers read them as other users; the folder is not, which closes them to
    everybody else on the host. There is no signing key unless somebody writes one into its file.
    """
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    missing = [file for file in (folder / name for name in USERS.values()) if not file.exists()]
    for file in missing:
        _write(file, new_password())
    if not (signing_key := folder / SIGNING_KEY).exists():
        signing_key.touch(mode=0o644)
        missing.append(signing_key)
    return _write_acl(folder, template) or bool(missing)


def close(folder: Path) -> list[str]:
    """Close the folder to others and its files to their writing; return a line for each that was open.

    Raises ``ConfigurationError``, with a line for each, where one cannot be read or can be no secret.
    """
    if not folder.exists():
        return []
    said, problems = [], []
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: move it away, and `make secrets` makes one")
    if os.geteuid() not in (0, folder.stat().st_uid):
        raise ConfigurationError(f"{folder} is another user's: `sudo chown -R $USER {folder}`")
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
        said.append(
            f"{folder} was open to other users, and is closed now: whoever read a password there has it still until "
            '`make secrets-rotate`, keys of certificates until `make certs ARGS="--renew ca"`'
        )
    for file in sorted(folder.iterdir()):
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                if file.name in _PASSWORDS or file.suffix in (".key", ".crt"):
                    problems.append(f"{file} is no file: move it away, and `make secrets` makes one")
                continue
            if file.stat().st_mode & 0o022:
                file.chmod(file.stat().st_mode & ~0o022)
                said.append(f"{file} was open to other users' writing, and is closed now: check what it says")
            text = file.read_text()
        except UnicodeDecodeError:
            problems.append(f"{file} is not text: delete it, and `make secrets` makes a new one")
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror}")
        else:
            if file.name in _PASSWORDS and not (len(text.split()) == 1 and text.strip().isprintable()):
                problems.append(f"{file} holds no password, which is one word: delete it, and `make secrets` makes one")
    if problems:
        raise ConfigurationError("\n".join(problems))
    return said


def hashes(folder: Path, user: str) -> list[str]:
    """Return the hashes of a user's valid passwords: the one in its file, and those before while they are kept."""
    file = folder / USERS[user]
    retired = folder / (file.name + RETIRED)
    return [hash_of(file.read_text().strip()), *(retired.read_text().split() if retired.exists() else [])]


def hash_of(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def new_password() -> str:
    """Return 256 random bits, as text."""
    return secrets.token_urlsafe(32)


def replace(folder: Path, template: Path, user: str, password: str) -> None:
    """Make a new password a user's own; those before stay valid until ``retire``."""
    file = folder / USERS[user]
    _write(folder / (file.name + RETIRED), "\n".join(hashes(folder, user)))
    _write(file, password)
    _write_acl(folder, template)


def retire(folder: Path, template: Path, user: str) -> None:
    """End the validity of a user's password before the present one."""
    (folder / (USERS[user] + RETIRED)).unlink(missing_ok=True)
    _write_acl(folder, template)


def _write_acl(folder: Path, template: Path) -> bool:
    # Redis takes no comments in the file itself.
    rules = "".join(line for line in template.read_text().splitlines(keepends=True) if not line.startswith("#"))
    acl = rules.format(**{user: " ".join(f"#{value}" for value in hashes(folder, user)) for user in USERS})
    file = folder / ACL
    if file.exists() and file.read_text() == acl:
        return False
    _write(file, acl)
    return True


def _write(file: Path, text: str) -> None:
    # In place where it exists: a container's mount holds on to the file that it was started with.
    file.touch(mode=0o444)
    file.chmod(0o644)
    file.write_text(text)
    file.chmod(0o444)
