"""The passwords of an environment: made once, as files, in a folder that only its owner can enter."""

import hashlib
import os
import secrets
import stat
from pathlib import Path

from ..config import ROOT, OpsError

ACL = "redis_acl"
ACL_TEMPLATE = ROOT / "redis" / "users.acl.template"  #: with ``{user}`` where the hashes of passwords go
#: Redis's users, each with the file of its password. The worker's file is named after its setting, REDIS_PASSWORD.
USERS = {
    "worker": "redis_password",
    "producer": "redis_producer_password",
    "monitor": "redis_monitor_password",
    "admin": "redis_admin_password",
}
_PASSWORDS = frozenset(USERS.values())
RETIRED = ".retired"  #: suffix of the file with the hashes of earlier passwords that are still valid
SIGNING_KEY = "worker_signing_key"


def ensure(folder: Path) -> bool:
    """Make the secrets that are missing in a folder. Return whether any was missing.

    Redis never sees a password in the clear: its ACL file has hashes. Everybody may read the files, since containers
    read them as other users, but only the owner may enter the folder. The file of the signing key stays empty until
    somebody writes a key into it.
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
    return _write_acl(folder) or bool(missing)


def close(folder: Path) -> list[str]:
    """Have only the owner enter the folder and write its files. Return a line for each that was open to others.

    Raises ``OpsError`` if a file cannot be read, or cannot be what its name says.
    """
    if not folder.exists():
        return []
    closed, problems = [], []
    if not folder.is_dir():
        raise OpsError(f"{folder} is not a folder: move it away, and `make secrets` makes one")
    if os.geteuid() not in (0, folder.stat().st_uid):
        raise OpsError(f"{folder} is another user's: `sudo chown -R $USER {folder}`")
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
        closed.append(
            f"{folder} was open to other users, and is closed now: anybody who read a password there can use it until "
            '`make secrets-rotate`, keys of certificates until `make certs ARGS="--renew ca"`'
        )
    for file in sorted(folder.iterdir()):
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                if file.name in _PASSWORDS or file.suffix in (".key", ".crt"):
                    problems.append(f"{file} is not a file: move it away, and `make secrets` makes one")
                continue
            if file.stat().st_mode & 0o022:
                file.chmod(file.stat().st_mode & ~0o022)
                closed.append(f"{file} was open to other users' writing, and is closed now: check what it says")
            text = file.read_text()
        except UnicodeDecodeError:
            problems.append(f"{file} is not text: delete it, and `make secrets` makes a new one")
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror}")
        else:
            if file.name in _PASSWORDS and not (len(text.split()) == 1 and text.strip().isprintable()):
                what = "does not hold a password, which is one word"
                problems.append(f"{file} {what}: delete it, and `make secrets` makes one")
    if problems:
        raise OpsError("\n".join(problems))
    return closed


def hashes(folder: Path, user: str) -> list[str]:
    """Return the hashes of a user's valid passwords: the one in its file, and earlier ones until ``retire``."""
    file = folder / USERS[user]
    retired = folder / (file.name + RETIRED)
    return [hash_of(file.read_text().strip()), *(retired.read_text().split() if retired.exists() else [])]


def hash_of(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def new_password() -> str:
    """Return 256 random bits, as text."""
    return secrets.token_urlsafe(32)


def replace(folder: Path, user: str, password: str) -> None:
    """Give a user a new password. Earlier ones stay valid until ``retire``."""
    file = folder / USERS[user]
    _write(folder / (file.name + RETIRED), "\n".join(hashes(folder, user)))
    _write(file, password)
    _write_acl(folder)


def retire(folder: Path, user: str) -> None:
    """End the validity of a user's earlier passwords."""
    (folder / (USERS[user] + RETIRED)).unlink(missing_ok=True)
    _write_acl(folder)


def _write_acl(folder: Path) -> bool:
    # Redis takes no comments in the file itself.
    rules = "".join(line for line in ACL_TEMPLATE.read_text().splitlines(keepends=True) if not line.startswith("#"))
    acl = rules.format(**{user: " ".join(f"#{value}" for value in hashes(folder, user)) for user in USERS})
    file = folder / ACL
    if file.exists() and file.read_text() == acl:
        return False
    _write(file, acl)
    return True


def _write(file: Path, text: str) -> None:
    # A file that exists is written in place: the mount of a container stays with the file that it began with.
    file.touch(mode=0o444)
    file.chmod(0o644)
    file.write_text(text)
    file.chmod(0o444)
