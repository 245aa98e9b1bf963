"""The certificates of an environment: a CA of its own, and what it signs for Redis and for those who connect to it.

They are files in ``secrets/<ENV>/``, ``NAME.crt`` and ``NAME.key``. The command ``openssl`` of the host or of an image
makes them. No key leaves that folder, and the key of the CA is in no container.
"""

import ipaddress
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..config import OpsError
from ..config.environment import Environment
from ..config.units import DAY_S
from ..engine import commands, shell, terminal

CA, SERVER, CLIENT = NAMES = ("redis_ca", "redis_server", "redis_client")
SERVER_NAMES = ("redis", "localhost", "127.0.0.1")  #: as containers and the host call Redis
DAYS = {CA: 3650, SERVER: 397, CLIENT: 397}
RENEW_DAYS = 30  #: a certificate with fewer days left is renewed

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

OpenSSL = Callable[..., str]  #: takes the folder to run in and the arguments, and returns what it prints


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: whose it is, who signed it, for which names, until when, in seconds since 1970."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    expires: float

    def days_left(self, now: float) -> int:
        return int((self.expires - now) // DAY_S)

    def is_due(self, now: float, names: Sequence[str], issuer: str) -> bool:
        """Return whether it has to be replaced: it expires soon, or has other names or another CA than those given."""
        return self.days_left(now) < RENEW_DAYS or set(self.names) != set(names) or self.issuer != issuer


def parse(text: str) -> Certificate:
    """Return the certificate that ``openssl x509`` has printed for ``read``."""
    said = dict(re.findall(r"^(subject|issuer|notAfter)=(?:CN=)?(.*)$", text, re.MULTILINE))
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
    return Certificate(
        said["subject"], said["issuer"], tuple(map(_canonical, names)), ssl.cert_time_to_seconds(said["notAfter"])
    )


def read(folder: Path, name: str, openssl: OpenSSL) -> Certificate | None:
    """Return what a certificate says, or None if it or its key is missing. Only the CA's key may be elsewhere."""
    if not all((folder / f"{name}{end}").exists() for end in ((".crt",) if name == CA else (".crt", ".key"))):
        return None
    fields = ("-subject", "-issuer", "-enddate", "-ext", "subjectAltName", "-nameopt", "RFC2253")
    return parse(openssl(folder, "x509", "-in", f"{name}.crt", "-noout", *fields))


def ensure(
    folder: Path, project: str, names: Sequence[str], openssl: OpenSSL, *, now: float, renew: str | None = None
) -> list[str]:
    """Make certificates that are missing, and renew those that expire soon. Return the names of those made.

    :param project: the CA is named after it
    :param names: further names and addresses of Redis
    :param renew: one to renew before its time; those that the CA has signed are renewed with it

    If the CA's certificate is there and its key is not, somebody else signs, and nothing is made. Raises ``OpsError``
    if a certificate is missing then.
    """
    ca = read(folder, CA, openssl)
    if ca and not (folder / f"{CA}.key").exists():
        if missing := [f"{name}.crt" for name in (SERVER, CLIENT) if renew or read(folder, name, openssl) is None]:
            raise OpsError(f"secrets/{folder.name}/ has no {CA}.key, which would sign {', '.join(missing)}")
        return []
    made = []
    if ca and renew != CA and not ca.is_due(now, (), ca.issuer):
        issuer = ca.subject
    else:
        # No other CA has this name, so the name tells who signed a certificate.
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
    """Return a line for each certificate: its file, when it expires, the days left, its names."""
    rows: list[tuple[str | int, ...]] = [("certificate", "expires", "days", "of")]
    for name in NAMES:
        if it := read(folder, name, openssl):
            day = datetime.fromtimestamp(it.expires, timezone.utc).date().isoformat()
            rows.append((f"{name}.crt", day, it.days_left(now), ", ".join(it.names) or it.subject))
    return terminal.table(rows)


def on_host() -> bool:
    """Return whether the host has an ``openssl`` of version 3 or newer. Older ones, and LibreSSL, sign otherwise."""
    return re.match(r"OpenSSL ([3-9]|\d\d)\.", shell.ask(["openssl", "version"]).stdout) is not None


def command(folder: Path, image: str | None) -> OpenSSL:
    """Return a function that runs the host's ``openssl``, or that of an image, which sees only this folder.

    The function raises ``OpsError`` if the command fails.
    """
    container = ["docker", "run", "--rm", "--network=none", f"--user={os.getuid()}:{os.getgid()}"]

    def run(where: Path, *arguments: str) -> str:
        prefix = [*container, f"--volume={folder}:{folder}", f"--workdir={where}", image] if image else []
        done = shell.ask([*prefix, "openssl", *arguments], folder=where)
        if done.returncode:
            raise OpsError(f"openssl {arguments[0]} in {folder}: {done.stderr.strip()}")
        return done.stdout

    return run


def print_command(environment: Environment) -> list[str]:
    """Print the certificates, one after the other, as the container of Redis has them."""
    argv = ["cat", *(f"/run/secrets/{name}.crt" for name in NAMES)]
    return commands.run_in(environment, "redis", argv, terminal=False)


def reload_command(environment: Environment) -> list[str]:
    """Have Redis read its certificates from their files, for new connections. It prints OK."""
    files = {"ca-cert": f"{CA}.crt", "cert": f"{SERVER}.crt", "key": f"{SERVER}.key"}
    settings = [part for name, file in files.items() for part in (f"tls-{name}-file", f"/run/secrets/{file}")]
    # The certificate that Redis still has may have expired, or be another CA's. That must not keep us from changing it.
    return commands.redis_cli(environment, ["--insecure", "config", "set", *settings], terminal=False)


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
            # A file that exists is written in place: the mount of a container stays with the file that it began with.
            # Containers read the files as other users, but never the CA's key.
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
    # openssl prints an IPv6 address at full length.
    return str(ipaddress.ip_address(name)) if _is_address(name) else name
