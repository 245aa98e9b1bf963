"""The certificates of an environment: a CA of its own, and what it signs for Redis and for those who connect to it.

They are files in ``secrets/<ENV>/``, ``NAME.crt`` and ``NAME.key``, made by the command ``openssl``: the host's, or
else an image's. No key leaves that folder, and the CA's is in no container.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from .configuration import ConfigurationError

CA, SERVER, CLIENT = NAMES = ("redis_ca", "redis_server", "redis_client")
SERVER_NAMES = ("redis", "localhost", "127.0.0.1")  #: as containers and the host call Redis
DAYS = {CA: 3650, SERVER: 397, CLIENT: 397}
RENEW_DAYS = 30  #: what has fewer left is renewed
DAY_S = 24 * 3600

_CONFIG = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = {subject}
[extensions]
subjectKeyIdentifier = hash
{extensions}
"""
_SIGNS = "basicConstraints = critical,CA:TRUE,pathlen:0\nkeyUsage = critical,keyCertSign"
_SIGNED = """\
authorityKeyIdentifier = keyid
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = {usage}"""

OpenSSL = Callable[..., str]  #: takes the folder to run in and the arguments, returns what it prints


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: whose it is, who signed it, for which names, until when (seconds since 1970)."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    expires: float

    def days_left(self, now: float) -> int:
        return int((self.expires - now) // DAY_S)

    def is_due(self, now: float, names: Sequence[str], issuer: str) -> bool:
        """Whether another has to take its place: it expires soon, or its names or its CA are not those given."""
        return self.days_left(now) < RENEW_DAYS or set(self.names) != set(names) or self.issuer != issuer


def parse(text: str) -> Certificate:
    """Return the certificate of which ``openssl x509`` printed this for ``read``."""
    said = dict(re.findall(r"^(subject|issuer|notAfter)=(?:CN=)?(.*)$", text, re.MULTILINE))
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
    return Certificate(
        said["subject"], said["issuer"], tuple(map(_canonical, names)), ssl.cert_time_to_seconds(said["notAfter"])
    )


def read(folder: Path, name: str, openssl: OpenSSL) -> Certificate | None:
    """Return what a certificate says, None where it or its key is missing; the CA's key may be elsewhere."""
    if not all((folder / f"{name}{end}").exists() for end in ((".crt",) if name == CA else (".crt", ".key"))):
        return None
    fields = ("-subject", "-issuer", "-enddate", "-ext", "subjectAltName", "-nameopt", "RFC2253")
    return parse(openssl(folder, "x509", "-in", f"{name}.crt", "-noout", *fields))


def ensure(
    folder: Path, project: str, names: Sequence[str], openssl: OpenSSL, *, now: float, renew: str | None = None
) -> list[str]:
    """Make what is missing, renew what expires soon; return the names of what was made.

    :param project: what the CA is named after
    :param names: more names and addresses of Redis
    :param renew: one to renew before its time; with the CA go those that it signed

    Where there is a CA's certificate without its key, somebody else signs: nothing is made then. Raises
    ``ConfigurationError`` where something would have to be.
    """
    ca = read(folder, CA, openssl)
    if ca and not (folder / f"{CA}.key").exists():
        if missing := [f"{name}.crt" for name in (SERVER, CLIENT) if renew or read(folder, name, openssl) is None]:
            raise ConfigurationError(f"secrets/{folder.name}/ has no {CA}.key, which would sign {', '.join(missing)}")
        return []
    made = []
    if ca and renew != CA and not ca.is_due(now, (), ca.issuer):
        issuer = ca.subject
    else:
        # No other CA has its name: it tells who signed a certificate.
        issuer = f"{project} CA {secrets.token_hex(4)}"
        _make(folder, CA, issuer, _SIGNS, openssl)
        made.append(CA)
    for name, subject, usage, its_names in (
        (SERVER, "redis", "serverAuth", (*SERVER_NAMES, *map(_canonical, names))),
        (CLIENT, "client", "clientAuth", ()),
    ):
        there = read(folder, name, openssl)
        if there is None or renew == name or there.is_due(now, its_names, issuer):
            _make(folder, name, subject, _signed(usage, its_names), openssl)
            made.append(name)
    return made


def table(folder: Path, openssl: OpenSSL, *, now: float) -> str:
    """Return a line for each certificate: file, names, day on which it expires, days left until then."""
    rows = [("certificate", "expires", "days", "of")]
    for name in NAMES:
        if it := read(folder, name, openssl):
            day = datetime.fromtimestamp(it.expires, timezone.utc).date().isoformat()
            rows.append((f"{name}.crt", day, str(it.days_left(now)), ", ".join(it.names) or it.subject))
    return "\n".join(f"{file:17} {day:10} {days:>5}  {of}" for file, day, days, of in rows)


def on_host() -> bool:
    """Whether the host has an ``openssl`` that will do; LibreSSL, and OpenSSL before 3, sign in other ways."""
    if shutil.which("openssl") is None:
        return False
    said = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False).stdout
    return re.match(r"OpenSSL ([3-9]|\d\d)\.", said) is not None


def command(folder: Path, image: str | None) -> OpenSSL:
    """Return what runs the host's ``openssl``, or that of an image, which sees this folder and nothing else.

    Calling it raises ``ConfigurationError`` where it fails.
    """
    container = ["docker", "run", "--rm", "--network=none", f"--user={os.getuid()}:{os.getgid()}"]

    def run(where: Path, *arguments: str) -> str:
        prefix = [*container, f"--volume={folder}:{folder}", f"--workdir={where}", image] if image else []
        done = subprocess.run([*prefix, "openssl", *arguments], cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigurationError(f"openssl {arguments[0]} in {folder}: {done.stderr.strip()}")
        return done.stdout

    return run


def _signed(usage: str, names: Sequence[str]) -> str:
    extensions = _SIGNED.format(usage=usage)
    listed = ",".join(f"IP:{name}" if _is_address(name) else f"DNS:{name}" for name in names)
    return f"{extensions}\nsubjectAltName = {listed}" if names else extensions


def _make(folder: Path, name: str, subject: str, extensions: str, openssl: OpenSSL) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        new = Path(scratch)
        (new / "config").write_text(_CONFIG.format(subject=subject, extensions=extensions))
        ca = [] if name == CA else ["-CA", f"../{CA}.crt", "-CAkey", f"../{CA}.key"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key", "-out", "crt"]
        openssl(new, "req", "-x509", "-config", "config", "-days", str(DAYS[name]), *ca, *key)
        for end in ("key", "crt"):
            file = folder / f"{name}.{end}"
            # In place where it exists: a container's mount holds on to the file that it was started with. Open to read,
            # as containers do so as other users, in a folder that is not; no container reads the CA's key.
            file.touch(mode=0o600)
            file.chmod(0o600)
            file.write_text((new / end).read_text())
            file.chmod(0o400 if (name, end) == (CA, "key") else 0o444)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _canonical(name: str) -> str:
    # An address of version 6 is printed at full length.
    return str(ipaddress.ip_address(name)) if _is_address(name) else name
