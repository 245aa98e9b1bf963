"""Certificates: what is made, when it is renewed, who can read it; signed by the real ``openssl``."""

from __future__ import annotations

import stat
import subprocess
import time
from pathlib import Path

import pytest

from ops.config import OpsError
from ops.config.load import load
from ops.config.units import DAY_S
from ops.secrets import certificates
from ops.secrets.certificates import CA, CLIENT, NAMES, SERVER, SERVER_NAMES, Certificate

NOW = int(time.time())  # certificates have whole seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "test"
    folder.mkdir(mode=0o700)
    return folder


def ensure(folder: Path, *names: str, days: float = 0, renew: str | None = None) -> list[str]:
    """Ensure the certificates, some days from now."""
    openssl = certificates.command(folder, None)
    return certificates.ensure(folder, "aegis-test", names, openssl, now=NOW + days * DAY_S, renew=renew)


def read(folder: Path, name: str) -> Certificate:
    read = certificates.read(folder, name, certificates.command(folder, None))
    assert read is not None
    return read


def test_what_openssl_prints_is_understood() -> None:
    text = """\
subject=CN=redis
issuer=CN=aegis-prod CA 6cc7676c
notAfter=Dec 26 13:28:14 2027 GMT
X509v3 Subject Alternative Name: 
    DNS:redis, DNS:*.example.org, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1
"""  # noqa: W291 - as it is printed
    names = ("redis", "*.example.org", "127.0.0.1", "::1")
    assert certificates.parse(text) == Certificate("redis", "aegis-prod CA 6cc7676c", names, 1829827694)


@pytest.mark.parametrize(
    ("days", "names", "issuer", "due"),
    [
        (31, ("redis",), "CA 1", False),
        (29, ("redis",), "CA 1", True),
        (-1, ("redis",), "CA 1", True),
        (31, ("redis", "queue.example.org"), "CA 1", True),
        (31, ("redis",), "CA 2", True),
    ],
)
def test_when_another_is_due(days: int, names: tuple[str, ...], issuer: str, due: bool) -> None:
    assert Certificate("redis", "CA 1", ("redis",), NOW + days * DAY_S).is_due(NOW, names, issuer) == due


def test_all_is_made_once_and_signed_by_the_ca(folder: Path) -> None:
    assert ensure(folder, "::1", "queue.example.org") == list(NAMES)
    assert ensure(folder, "::1", "queue.example.org") == []
    assert read(folder, SERVER).names == (*SERVER_NAMES, "::1", "queue.example.org")
    for name, purpose in ((SERVER, "sslserver"), (CLIENT, "sslclient")):
        verify = ["openssl", "verify", "-x509_strict", "-CAfile", f"{CA}.crt", "-purpose", purpose, f"{name}.crt"]
        done = subprocess.run(verify, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert [read(folder, name).days_left(NOW) for name in NAMES] == [3650, 397, 397]


def test_the_cas_key_is_its_owners_alone(folder: Path) -> None:
    ensure(folder)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes.pop(f"{CA}.key") == 0o400
    assert set(modes.values()) == {0o444}
    assert len(modes) == 5, "nothing else is left behind"


def test_what_expires_soon_is_renewed_in_place(folder: Path) -> None:
    ensure(folder)
    before = {file: (file.stat().st_ino, file.read_text()) for file in folder.iterdir()}
    assert ensure(folder, days=366) == []
    assert ensure(folder, days=368) == [SERVER, CLIENT]
    for file, (inode, text) in before.items():
        assert file.stat().st_ino == inode
        assert (file.read_text() == text) == file.name.startswith(CA)
    assert ensure(folder, days=3621) == list(NAMES)


def test_new_names_and_a_key_that_is_gone_are_reasons_too(folder: Path) -> None:
    ensure(folder)
    assert ensure(folder, "queue.example.org") == [SERVER]
    (folder / f"{CLIENT}.key").unlink()
    assert ensure(folder, "queue.example.org") == [CLIENT]


def test_renewal_before_its_time(folder: Path) -> None:
    ensure(folder)
    assert ensure(folder, renew=CLIENT) == [CLIENT]
    assert ensure(folder, renew=CA) == list(NAMES)


def test_without_the_cas_key_nothing_is_made(folder: Path) -> None:
    ensure(folder)
    (folder / f"{CA}.key").unlink()
    assert ensure(folder, "queue.example.org", days=390) == []
    (folder / f"{SERVER}.crt").unlink()
    with pytest.raises(OpsError, match=r"secrets/test/ has no redis_ca.key, which would sign redis_server"):
        ensure(folder)


def test_the_table(folder: Path) -> None:
    ensure(folder)
    head, ca, server, client = certificates.table(folder, certificates.command(folder, None), now=NOW).splitlines()
    assert head.split() == ["certificate", "expires", "days", "of"]
    assert ca.split()[0::2] == ["redis_ca.crt", "3650", "CA"]
    assert server.endswith("  397  redis, localhost, 127.0.0.1")
    assert client.endswith("  397  client")


def test_an_image_runs_openssl_where_the_host_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not certificates.on_host()
    seen: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(argv)
        return subprocess.CompletedProcess(argv, 1, "", "no such thing\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OpsError, match=r"openssl x509 in .*: no such thing"):
        certificates.command(folder, "python:3.13")(folder / "new", "x509", "-in", "a")
    (argv,) = seen
    assert argv[:4] == ["docker", "run", "--rm", "--network=none"]
    assert argv[5:] == [
        f"--volume={folder}:{folder}", f"--workdir={folder}/new", "python:3.13", "openssl", "x509", "-in", "a"
    ]  # fmt: skip


def test_redis_reads_them_anew_by_one_command() -> None:
    argv = certificates.reload_command(load("prod", shell={}))
    assert argv[-9:] == [
        "--insecure", "config", "set",
        "tls-ca-cert-file", "/run/secrets/redis_ca.crt",
        "tls-cert-file", "/run/secrets/redis_server.crt",
        "tls-key-file", "/run/secrets/redis_server.key",
    ]  # fmt: skip
