"""What `make doctor` finds in files: secrets, certificates, what git has; and in a port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.config.environment import Environment
from ops.config.units import DAY_S
from ops.look.doctor import credentials, queues, rules
from ops.look.doctor.facts import Facts, hashes
from ops.look.doctor.finding import Finding
from ops.secrets import certificates, passwords
from ops.secrets.certificates import CA, CLIENT, SERVER, Certificate
from tests.unit.test_doctor import REDIS, UP, VALUES, Check, facts, service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The secrets of an environment with TLS."""
    folder = tmp_path / "secrets" / "test"
    passwords.ensure(folder)
    certificates.ensure(folder, "test", (), certificates.command(folder, None), now=time.time())
    return folder


def in_folder(folder: Path, **values: str) -> Facts:
    layers = {"COMPOSE_FILE": "compose/base.yml:compose/tls.yml"}
    return facts(secrets=folder, environment=Environment("test", (), VALUES | layers | values))


def test_secrets_as_they_are_made_are_in_order(folder: Path) -> None:
    findings = [check(in_folder(folder)) for check in credentials.CHECKS]
    assert [finding and finding.status for finding in findings] == ["ok"] * len(credentials.CHECKS), findings
    live = REDIS | {"users": hashes((folder / passwords.ACL).read_text())}
    both = in_folder(folder)
    both.known["redis"] = live
    assert queues.redis_users(both) == Finding("ok", "Redis has the passwords of the files")
    passwords.replace(folder, "worker", "another")
    assert "other passwords of worker" in str(queues.redis_users(both))


def other_key(folder: Path) -> None:
    shutil.copy(folder / f"{CLIENT}.key", folder / "other")
    (folder / "other").replace(folder / f"{SERVER}.key")


def other_password(folder: Path) -> None:
    (folder / "redis_password").chmod(0o600)
    (folder / "redis_password").write_text("another")


def new_ca(folder: Path) -> None:
    before = (folder / f"{CLIENT}.crt").read_text()
    certificates.ensure(folder, "test", (), certificates.command(folder, None), now=time.time(), renew=CA)
    (folder / f"{CLIENT}.crt").chmod(0o600)
    (folder / f"{CLIENT}.crt").write_text(before)


@pytest.mark.parametrize(
    ("harm", "check", "says"),
    [
        (lambda folder: folder.chmod(0o755), credentials.folder, "0755: others on this host can enter it"),
        (lambda folder: (folder / "redis_password").unlink(), credentials.files, "missing: redis_password"),
        (lambda folder: (folder / passwords.ACL).chmod(0o666), credentials.files, "others can write redis_acl"),
        (lambda folder: (folder / f"{CA}.key").chmod(0o444), credentials.files, "others can read redis_ca.key"),
        (lambda folder: (folder / f"{SERVER}.crt").unlink(), credentials.files, "missing: redis_server.crt"),
        (lambda folder: (folder / f"{SERVER}.crt").unlink(), credentials.certificate_keys, "redis_server.key is not"),
        (other_password, credentials.access_list, "another password of worker"),
        (other_key, credentials.certificate_keys, "redis_server.key is not the key of redis_server.crt"),
        (new_ca, credentials.certificate_names, "not signed by test CA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_secrets(folder: Path, harm: Callable[[Path], None], check: Check, says: str) -> None:
    harm(folder)
    finding = check(in_folder(folder))
    assert finding is not None
    assert finding.status == "fail"
    assert says in finding.fact
    assert "BEGIN" not in str(finding)
    assert (folder / "redis_producer_password").read_text() not in str(finding)


def test_an_empty_secret(folder: Path) -> None:
    (folder / passwords.USERS["monitor"]).chmod(0o600)
    (folder / passwords.USERS["monitor"]).write_text("")
    assert credentials.files(in_folder(folder)).fact == "empty: redis_monitor_password"


@pytest.mark.parametrize(("days", "status"), [(31, "ok"), (29, "warn"), (-1, "fail")])
def test_certificates_expire(days: int, status: str) -> None:
    expires = time.time() + (days + 0.5) * DAY_S
    found = {name: Certificate(name, "CA", (), expires) for name in certificates.NAMES}
    given = in_folder(Path())
    given.known["certificates"] = found
    finding = credentials.certificate_expiry(given)
    assert finding is not None
    assert finding.status == status


def test_a_name_that_the_certificate_lacks(folder: Path) -> None:
    finding = credentials.certificate_names(in_folder(folder, REDIS_TLS_NAMES="queue.example.org"))
    assert finding is not None
    assert finding.fact == "redis_server.crt is not for queue.example.org"


def test_secrets_have_no_place_in_env_files(tmp_path: Path) -> None:
    file = tmp_path / "test.env"
    given = facts(environment=Environment("test", (file,), VALUES))
    file.write_text("API_TOKEN=\nTOKEN_DAYS=3\nREDIS_URL=redis://redis:6379\nREDIS_SSL_KEYFILE=/x.key\n")
    assert rules.secrets_in_env_files(given).status == "ok"
    file.write_text("API_TOKEN=hush\nREDIS_URL=redis://me:hush@redis:6379\nSENTRY_DSN=hush\n")
    finding = rules.secrets_in_env_files(given)
    assert finding.status == "fail"
    assert finding.fact.startswith("API_TOKEN in test.env, REDIS_URL in test.env, SENTRY_DSN in test.env")
    assert "hush" not in str(finding)


def test_secrets_have_no_place_in_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.engine.shell.ROOT", tmp_path)
    assert rules.secrets_in_git(facts()) is None, "it is no checkout"
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert str(rules.secrets_in_git(facts())) == str(Finding("ok", "none"))
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "dev.local.env").write_text("A=1\n")
    subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
    assert "git has env/dev.local.env" in str(rules.secrets_in_git(facts()))


def test_a_port_that_another_program_has() -> None:
    assert rules.free_ports(facts(containers=UP)).status == "ok", "ours"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        given = facts(model=service([{"published": port, "host_ip": "127.0.0.1"}], "ports", name="redis"))
        assert f"another program has {port} for redis" in str(rules.free_ports(given))
    assert rules.free_ports(given).status == "ok"
