"""The host's side, without a host: what the files say, what is wrong with them, which command lines come of it."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_worker.settings import STOP_MARGIN_S
from ops.config import ROOT, OpsError, envfile, limits, units
from ops.config.environment import Environment, names
from ops.config.load import load as load_checked
from ops.engine import commands, journal
from ops.engine.stack import Stack
from ops.release import versions
from ops.secrets import passwords

GOOD = """\
ENV=test
COMPOSE_PROJECT_NAME=aegis-test
COMPOSE_FILE=compose/base.yml:compose/prod.yml
"""

Load = Callable[..., Environment]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads env/test.env, made of the good one and what is given, from a tree with our layers and three queues."""
    (tmp_path / "env").mkdir()
    (tmp_path / "compose").symlink_to(ROOT / "compose")
    (queues := tmp_path / "app" / "components" / "worker" / "queues").mkdir(parents=True)
    for queue in ("load_test", "media", "system"):
        (queues / f"{queue}.py").touch()
    base = (ROOT / "env" / "base.env").read_text()
    base = re.sub("^WORKER_QUEUES=.*", "WORKER_QUEUES=system,load_test", base, flags=re.MULTILINE)
    (tmp_path / "env" / "base.env").write_text(base)

    def load(text: str = "", local: str = "", name: str = "test", **shell: str) -> Environment:
        (tmp_path / "env" / "test.env").write_text(GOOD + text)
        if local:
            (tmp_path / "env" / "test.local.env").write_text(local)
        return load_checked(name, root=tmp_path, shell=shell)

    return load


def test_the_app_and_the_host_know_one_margin() -> None:
    assert limits.STOP_MARGIN_S == STOP_MARGIN_S


def test_later_files_win_and_the_shell_above_them(load: Load) -> None:
    environment = load("WORKER_REPLICAS=2\nLOG_LEVEL=ERROR", "WORKER_REPLICAS=3", REDIS_CPU_LIMIT="4", PATH="/bin")
    assert environment.values["WORKER_REPLICAS"] == "3"
    assert environment.values["LOG_LEVEL"] == "ERROR"
    assert environment.values["REDIS_CPU_LIMIT"] == "4"
    assert "PATH" not in environment.values
    assert [file.name for file in environment.files] == ["base.env", "test.env", "test.local.env"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not a line", "env/test.env:4: not NAME=value: not a line"),
        ("REDIS_PASSWORD=secret", "REDIS_PASSWORD does not go into env files"),
        ("WORKER_SIGNING_KEY=secret", "WORKER_SIGNING_KEY does not go into env files"),
        ("WORKER_REPLICAS=-1", "WORKER_REPLICAS=-1: it has to be a number of replicas, 0 to 9999"),
        ("WORKER_REPLICAS=²", "WORKER_REPLICAS=²: it has to be a number of replicas, 0 to 9999"),
        ("WORKER_MEDIA_REPLICAS=", "WORKER_MEDIA_REPLICAS=: it has to be a number of replicas, 0 to 9999"),
        ("WORKER_MEMORY_LIMIT=lots", "WORKER_MEMORY_LIMIT=lots: it has to be an amount of memory"),
        ("REDIS_MAXMEMORY=0", "REDIS_MAXMEMORY=0: it has to be an amount of memory"),
        ("WORKER_MEMORY_LIMIT=512M", "WORKER_MEMORY_RESERVATION=1G is more than WORKER_MEMORY_LIMIT=512M"),
        ("WORKER_CPU_LIMIT=lots", "WORKER_CPU_LIMIT=lots: it has to be a number of CPUs, more than 0"),
        ("WORKER_CPU_RESERVATION=0.0", "WORKER_CPU_RESERVATION=0.0: it has to be a number of CPUs, more than 0"),
        ("REDIS_PORT=70000", "REDIS_PORT=70000: it has to be a port from 1 to 65535"),
        ("REDIS_PORT=0", "REDIS_PORT=0: it has to be a port from 1 to 65535"),
        ("REDIS_DB=-1", "REDIS_DB=-1: it has to be the number of a database"),
        ("LOG_MAX_SIZE=10", "LOG_MAX_SIZE=10: it has to be a size"),
        ("LOG_MAX_FILES=0", "LOG_MAX_FILES=0: it has to be a number of files, 1 or more"),
        ("RESTART_POLICY=never", "RESTART_POLICY=never: it has to be unless-stopped, always, on-failure or no"),
        ("REDIS_APPENDFSYNC=sometimes", "REDIS_APPENDFSYNC=sometimes: it has to be everysec, always or no"),
        (
            "HEALTHCHECK_INTERVAL_SECONDS=0",
            "HEALTHCHECK_INTERVAL_SECONDS=0: it has to be a whole number of seconds, 1 or",
        ),
        (
            "WORKER_STOP_GRACE_SECONDS=1.5",
            "WORKER_STOP_GRACE_SECONDS=1.5: it has to be a whole number of seconds, 1 or more",
        ),
        (
            "WORKER_JOB_COMPLETION_WAIT=-1",
            "WORKER_JOB_COMPLETION_WAIT=-1: it has to be a whole number of seconds, 0 or more",
        ),
        ("APP_VERSION=a b", "APP_VERSION=a b: it has to be the tag of an image"),
        ("REDIS_IMAGE=", "REDIS_IMAGE=: it has to be the name of an image"),
        ("WORKER_QUEUES=system,nope", "WORKER_QUEUES: unknown queue nope: the queues are load_test, media, system"),
        ("WORKER_REPLICSA=3", "env/test.env: WORKER_REPLICSA is not in env/base.env: did you mean WORKER_REPLICAS?"),
        ("LOG_LEVEL=INFO\nLOG_LEVEL=DEBUG", "env/test.env:5: LOG_LEVEL stands in line 4, too"),
        ("WORKER_JOB_COMPLETION_WAIT=44", "has to be less than WORKER_STOP_GRACE_SECONDS=45 by 12 s"),
        ("WORKER_JOB_COMPLETION_WAIT=34", "set WORKER_STOP_GRACE_SECONDS=46 or more"),
        ("REDIS_MAXMEMORY=500mb", "REDIS_MAXMEMORY=500mb needs REDIS_MEMORY_LIMIT of 1.5 times as much"),
        ("REDIS_SSL=true", "REDIS_SSL=true needs compose/tls.yml in COMPOSE_FILE"),
        ("BACKUP_AGE_RECIPIENT=age1x\nBACKUP_GPG_RECIPIENT=me", "encrypted with one of them"),
        ("REDIS_TLS_CLIENTS=required", "REDIS_TLS_CLIENTS=required: it has to be no, optional or yes"),
        ("WORKER_EGRESS=no", "WORKER_EGRESS=no: it has to be on or off"),
        ("WORKER_EGRESS=off", "WORKER_EGRESS=off needs compose/secure-network.yml in COMPOSE_FILE"),
        ("REDIS_TLS_NAMES=a b,c", "REDIS_TLS_NAMES: a b is neither a name nor an address"),
    ],
)
def test_problems_are_said_by_name(load: Load, text: str, said: str) -> None:
    with pytest.raises(OpsError) as caught:
        load(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ENV", "prod", "it has to be its own name, ENV=test"),
        (
            "COMPOSE_PROJECT_NAME",
            "Aegis",
            "COMPOSE_PROJECT_NAME=Aegis: it has to be lower-case letters, digits, - and _",
        ),
        ("COMPOSE_FILE", "", "COMPOSE_FILE is missing in env/test.env"),
        ("COMPOSE_FILE", "base.yml:nope.yml", "compose/nope.yml, which is not there; compose/ has base.yml"),
        ("COMPOSE_FILE", "base.yml:common.yml", "compose/common.yml, which is no layer; compose/ has base.yml"),
        ("COMPOSE_FILE", "base.yml:tls.yml", "compose/tls.yml, so it needs REDIS_SSL=true"),
        ("COMPOSE_FILE", "base.yml:dev.yml:dev.yml", "COMPOSE_FILE names compose/dev.yml twice"),
        ("COMPOSE_FILE", "dev.yml:base.yml", "COMPOSE_FILE begins with compose/dev.yml: compose/base.yml has to come"),
        ("COMPOSE_FILE", "base.yml:queues.yml:dev.yml", "names compose/queues.yml before compose/dev.yml: it has to"),
        ("COMPOSE_FILE", "base.yml:../../etc/x.yml", "compose/../../etc/x.yml: a layer is a file of this checkout"),
        ("COMPOSE_FILE", "base.yml:/etc/x.yml", "names /etc/x.yml: a layer is a file of this checkout"),
    ],
)
def test_what_makes_the_stack_is_checked(load: Load, key: str, value: str, said: str) -> None:
    if key == "COMPOSE_FILE" and value:
        value = ":".join(name if name.startswith("/") else f"compose/{name}" for name in value.split(":"))
    with pytest.raises(OpsError) as caught:
        load(local=f"{key}={value}")
    assert said in str(caught.value)


def test_variables_of_a_teams_own_are_left_alone(load: Load) -> None:
    assert load("SMTP_HOST=mail\nWORKER_MEDIA_MAX_JOBS=2\nWORKER_VIDEO_CPU_LIMIT=2").values["SMTP_HOST"] == "mail"


def test_files_that_cannot_be_read_are_named(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "env" / "test.local.env"
    for make, said in (
        (lambda: file.write_bytes(b"A=1\nB=\xff\n"), "env/test.local.env:2: not UTF-8: save the file as UTF-8"),
        (lambda: (file.unlink(), file.mkdir()), "env/test.local.env: cannot be read: Is a directory"),
    ):
        make()
        with pytest.raises(OpsError, match=said):
            load()


def test_tls_to_another_redis_needs_no_layer(load: Load) -> None:
    assert not load("REDIS_SSL=true\nREDIS_URL=redis://redis.example.org:6380").tls


def test_an_environment_with_tls(load: Load) -> None:
    text = "COMPOSE_FILE=compose/base.yml:compose/tls.yml\nREDIS_SSL=true\nREDIS_TLS_NAMES= a.example.org, ::1,"
    environment = load(local=text)
    assert environment.tls
    assert environment.listed("REDIS_TLS_NAMES") == ["a.example.org", "::1"]


def test_all_problems_are_said_at_once(load: Load) -> None:
    with pytest.raises(OpsError) as caught:
        load("WORKER_REPLICAS=x\nREDIS_MAXMEMORY=y")
    assert len(str(caught.value).splitlines()) == 2


def test_an_environment_that_is_not_there(load: Load, tmp_path: Path) -> None:
    (tmp_path / "env" / "my_env.env").write_text("")
    with pytest.raises(OpsError, match=r"there is no env/nope\.env; there are: test$"):
        load(name="nope")


@pytest.mark.parametrize("name", ["base", "../etc", "test.local", "", "my_env", "Prod"])
def test_an_environment_that_is_none(load: Load, name: str) -> None:
    with pytest.raises(OpsError, match=f"ENV={name}: an environment's name has lower-case letters, digits"):
        load(name=name)


def test_two_environments_are_not_one_stack_by_what_this_machine_says(load: Load, tmp_path: Path) -> None:
    (tmp_path / "env" / "other.env").write_text("COMPOSE_PROJECT_NAME=other")
    assert load().values["COMPOSE_PROJECT_NAME"] == "aegis-test"
    (tmp_path / "env" / "other.local.env").write_text("COMPOSE_PROJECT_NAME=aegis-test")
    with pytest.raises(OpsError, match=r"COMPOSE_PROJECT_NAME=aegis-test is also that of ENV=other"):
        load()


def test_producers_keep_their_password_until_it_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "secrets" / "test"
    passwords.ensure(folder)
    first = passwords.hashes(folder, "producer")
    for _ in range(2):
        passwords.replace(folder, "producer", passwords.new_password())
    assert passwords.hashes(folder, "producer")[-1:] == first
    assert len(passwords.hashes(folder, "producer")) == 3
    passwords.retire(folder, "producer")
    assert len(passwords.hashes(folder, "producer")) == 1


def test_what_was_deployed_is_not_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    monkeypatch.setattr(journal, "path", lambda environment: tmp_path / environment)

    def is_deployed(version: str) -> bool:
        return versions.is_deployed(Stack(load(f"APP_VERSION={version}")))

    journal.write("test", "up", version="dev")
    journal.write("test", "deploy", version="bad", outcome="failed")
    journal.write("test", "deploy", version="1.0", outcome="done")
    assert [is_deployed(version) for version in ("dev", "bad", "1.0")] == [False, False, True]
    journal.write("test", "rollback", version="dev", outcome="done")
    assert is_deployed("dev")


@pytest.mark.parametrize("name", names())
def test_the_projects_own_environments_are_in_order(name: str) -> None:
    assert load_checked(name, shell={}).layers


def test_sizes() -> None:
    assert [units.size(text) for text in ("512M", "256mb", "1G", "7")] == [512 << 20, 256 << 20, 1 << 30, 7]
    assert units.size("1.5G") is None


def test_the_command_lines() -> None:
    dev = load_checked("dev", shell={})
    files = ["--env-file", "env/base.env", "--env-file", "env/dev.env"]
    if dev.local_file.exists():
        files += ["--env-file", "env/dev.local.env"]
    assert commands.compose(dev, "ps") == ["docker", "compose", *files, "ps"]
    assert commands.up(dev, build=True)[len(files) + 2 :][:3] == ["up", "--detach", "--build"]
    assert "--build" not in commands.up(dev, build=False)
    assert commands.scale(dev, {"worker": 2, "worker-media": 0})[-6:] == [
        "--scale",
        "worker=2",
        "--scale",
        "worker-media=0",
        "worker",
        "worker-media",
    ]
    assert "--no-recreate" in commands.scale(dev, {"worker": 2})
    assert commands.run_in(dev, "worker", ["x"], terminal=False, A="1")[-6:] == [
        "exec",
        "-T",
        "--env",
        "A=1",
        "worker",
        "x",
    ]
    assert commands.redis_cli(dev, ["PING"], terminal=True)[-4:] == ["redis-cli", "-n", "0", "PING"]
    assert commands.replicas_variable(None) == ("worker", "WORKER_REPLICAS")
    assert commands.replicas_variable("load_test") == ("worker-load-test", "WORKER_LOAD_TEST_REPLICAS")


def test_a_variable_is_written_in_place(tmp_path: Path) -> None:
    file = tmp_path / "dev.local.env"
    envfile.write(file, "WORKER_REPLICAS", "3")
    file.write_text(file.read_text() + "MINE=1\n")
    envfile.write(file, "WORKER_REPLICAS", "5")
    assert envfile.parse(file.read_text())[0] == {"MINE": "1", "WORKER_REPLICAS": "5"}
    assert [path.name for path in tmp_path.iterdir()] == ["dev.local.env"]


def passwords_in(folder: Path) -> dict[str, str]:
    return {user: (folder / name).read_text() for user, name in passwords.USERS.items()}


def users(folder: Path) -> dict[str, str]:
    """The rules of each user, as Redis gets them."""
    lines = (folder / passwords.ACL).read_text().splitlines()
    return {line.split()[1]: line for line in lines}


def test_secrets_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets" / "test"
    assert passwords.ensure(folder)
    made = passwords_in(folder)
    assert len(set(made.values())) == 4
    assert users(folder)["default"] == "user default off ~* &* +@all"
    for user, password in made.items():
        assert len(password) >= 32
        assert f" on #{hashlib.sha256(password.encode()).hexdigest()} " in users(folder)[user]
        assert password not in (folder / passwords.ACL).read_text()
    assert (folder / passwords.SIGNING_KEY).read_text() == ""
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700

    assert not passwords.ensure(folder)
    assert passwords_in(folder) == made


def test_a_password_that_was_replaced_by_hand_reaches_the_acl(tmp_path: Path) -> None:
    folder = tmp_path / "secrets" / "test"
    passwords.ensure(folder)
    file = folder / passwords.USERS["worker"]
    file.chmod(0o644)
    file.write_text("mine\n")
    assert passwords.ensure(folder)
    assert hashlib.sha256(b"mine").hexdigest() in users(folder)["worker"]


def test_two_passwords_are_valid_until_the_last_one_is_retired(tmp_path: Path) -> None:
    folder = tmp_path / "secrets" / "test"
    passwords.ensure(folder)
    before = passwords_in(folder)
    passwords.replace(folder, "producer", "the new one")
    assert passwords_in(folder) == before | {"producer": "the new one"}
    old, new = (hashlib.sha256(text.encode()).hexdigest() for text in (before["producer"], "the new one"))
    assert f" on #{new} #{old} " in users(folder)["producer"]
    assert not passwords.ensure(folder), "`make up` in between changes nothing"
    passwords.retire(folder, "producer")
    assert old not in (folder / passwords.ACL).read_text()
    assert f" on #{new} " in users(folder)["producer"]


def test_secrets_that_were_open_to_others_are_closed_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "secrets" / "test"
    assert passwords.close(folder) == []
    passwords.ensure(folder)
    assert passwords.close(folder) == []
    folder.chmod(0o750)
    (folder / "redis_ca.key").touch(mode=0o600)
    (folder / "redis_ca.key").chmod(0o620)
    opened, written = passwords.close(folder)
    assert opened.startswith(f"{folder} was open to other users, and is closed now")
    assert "`make secrets-rotate`" in opened
    assert written.startswith(f"{folder / 'redis_ca.key'} was open to other users' writing")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "redis_ca.key").stat().st_mode) == 0o600
    assert passwords.close(folder) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not hold a password, which is one word"),
        (b" \n", "does not hold a password, which is one word"),
        (b"two words", "does not hold a password, which is one word"),
        (b"two\nlines\n", "does not hold a password, which is one word"),
        (b"nul\0", "does not hold a password, which is one word"),
        (b"\xff", "is not text: delete it"),
        (None, "is not a file: move it away"),
    ],
)
def test_a_secret_that_is_none_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    folder = tmp_path / "secrets" / "test"
    passwords.ensure(folder)
    file = folder / passwords.USERS["producer"]
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(OpsError) as caught:
        passwords.close(folder)
    assert str(caught.value).startswith(f"{file} {said}")
    assert "\n" not in str(caught.value)


def test_a_folder_of_secrets_that_is_none_or_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OpsError, match="is not a folder"):
        passwords.close(file)
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OpsError, match="is another user's: `sudo chown"):
        passwords.close(tmp_path)


def test_environments_without_a_project_name_are_told_so(load: Load, tmp_path: Path) -> None:
    (tmp_path / "env" / "other.env").write_text("ENV=other\n")
    (tmp_path / "env" / "lacks.env").write_text("ENV=lacks\nCOMPOSE_FILE=compose/base.yml\n")
    with pytest.raises(OpsError, match=r"COMPOSE_PROJECT_NAME is missing in env/lacks\.env"):
        load(name="lacks")


def test_two_environments_are_not_one_stack(load: Load, tmp_path: Path) -> None:
    (tmp_path / "env" / "other.env").write_text(GOOD.replace("ENV=test", "ENV=other"))
    with pytest.raises(OpsError, match=r"COMPOSE_PROJECT_NAME=aegis-test is also that of ENV=other"):
        load()


@pytest.mark.parametrize("targets", [["nope"], ["help", "nope"]])
def test_make_refuses_what_is_no_target(targets: list[str]) -> None:
    done = subprocess.run(["make", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nope" in done.stderr
