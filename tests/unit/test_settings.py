"""Settings: what the guide shows has to work, what cannot work has to be said, in the variable's own name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from arq.worker import get_kwargs
from pydantic import ValidationError

from aegis_worker.payload import Serializer
from aegis_worker.project import Project, configured, current
from aegis_worker.redis.pool import create_pool
from aegis_worker.settings import STOP_MARGIN_S, QueueOverrides, Settings
from aegis_worker.worker import keeper, pulse, runner, worker
from docs import generate
from ops.config import limits
from tests.conftest import ROOT

BASE = generate.values("base")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *BASE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(Settings.model_config, "secrets_dir", None)


def settings(**values: object) -> Settings:
    return Settings(_env_file=None, **values)


def problems(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**values)
    return str(caught.value)


def test_the_guides_example_connects_where_it_says() -> None:
    redis = settings(REDIS_URL="redis://redis-prod:6379", REDIS_DB=1, REDIS_PASSWORD="your-secure-password")
    assert (redis.redis_settings.host, redis.redis_settings.port) == ("redis-prod", 6379)
    assert (redis.redis_settings.database, redis.redis_settings.password) == (1, "your-secure-password")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ("h", 6379, None, None, False)),
        ("redis://h/", ("h", 6379, None, None, False)),
        ("redis://h:7/0", ("h", 7, None, None, False)),
        ("redis://:p%40ss%2Fw%3A@h", ("h", 6379, None, "p@ss/w:", False)),
        ("rediss://me:pw@h:6380", ("h", 6380, "me", "pw", True)),
    ],
)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    redis = settings(REDIS_URL=url).redis_settings
    assert (redis.host, redis.port, redis.username, redis.password, redis.ssl) == expected


def test_a_unix_socket() -> None:
    assert settings(REDIS_URL="unix:///run/redis.sock").redis_settings.unix_socket_path == "/run/redis.sock"


def test_outside_a_container_the_local_url_is_used() -> None:
    assert settings(REDIS_URL="redis://redis", REDIS_URL_LOCAL="redis://localhost:7").redis_settings.port == 7


def test_outside_a_container_a_published_port_is_found() -> None:
    redis = settings(REDIS_URL="redis://redis", REDIS_PORT=7).redis_settings
    assert (redis.host, redis.port) == ("localhost", 7)
    assert settings(REDIS_PORT=7, REDIS_URL_LOCAL="redis://other").redis_settings.host == "other"


def test_tls_settings_reach_the_connection(tmp_path: Path) -> None:
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "c.pem", "k.pem"))
    for file in (ca, cert, key):
        Path(file).touch()
    tls = settings(REDIS_SSL=True, REDIS_SSL_CA_CERTS=ca, REDIS_SSL_CERTFILE=cert, REDIS_SSL_KEYFILE=key)
    redis = tls.redis_settings
    assert (redis.ssl, redis.ssl_ca_certs, redis.ssl_certfile, redis.ssl_keyfile) == (True, ca, cert, key)
    assert redis.ssl_check_hostname
    assert redis.ssl_cert_reqs == "required"


def test_certificates_that_are_not_named_are_those_of_the_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Settings.model_config, "secrets_dir", tmp_path)
    (tmp_path / "redis_client.crt").symlink_to("/dev/null")  # as containers have it without TLS
    redis = settings(REDIS_SSL=True).redis_settings
    assert (redis.ssl_ca_certs, redis.ssl_certfile, redis.ssl_keyfile) == (None, None, None)
    (tmp_path / "redis_ca.crt").touch()
    assert settings(REDIS_SSL=True).redis_settings.ssl_ca_certs == str(tmp_path / "redis_ca.crt")


def test_a_password_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("from-a-file\n")
    read = Settings(_env_file=None, _secrets_dir=tmp_path)
    assert read.redis_settings.password == "from-a-file"
    assert "from-a-file" not in repr(read)


def test_signing_keys_come_from_a_file_by_line_and_are_not_shown(tmp_path: Path) -> None:
    old, new = "o" * 32, "n" * 32
    (tmp_path / "worker_signing_key").write_text(f"{new}\n\n{old}\n")
    read = Settings(_env_file=None, _secrets_dir=tmp_path)
    record = {"t": None, "f": "task", "a": (), "k": {}, "et": 0}
    sent = read.serializer.dumps(record)
    assert Serializer(signing_keys=[new]).loads(sent) == record
    assert read.serializer.loads(Serializer(signing_keys=[old]).dumps(record)) == record
    assert new not in repr(read)
    (tmp_path / "worker_signing_key").write_text("\n")
    unsigned = Settings(_env_file=None, _secrets_dir=tmp_path).serializer.dumps(record)
    assert unsigned == Serializer().dumps(record)


def test_the_settings_choose_format_and_size_for_pool_and_queues() -> None:
    chosen = settings(WORKER_SERIALIZER="json", WORKER_MAX_PAYLOAD_BYTES=5000)
    pool = create_pool(chosen)
    assert pool.job_serializer is not None
    record = {"t": None, "f": "task", "a": ("x" * 4000,), "k": {}, "et": 0}
    assert pool.job_serializer(record).startswith(b"{")
    with pytest.raises(ValueError, match="larger than 5,000"):
        pool.job_serializer(record | {"a": ("x" * 6000,)})
    project = Project(settings="", queues="")
    vars(project)["config"] = chosen
    read = get_kwargs(project.complete("photos", type("WorkerSettings", (), {})))
    assert read["job_deserializer"](read["job_serializer"](record)) == record


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"WORKER_SERIALIZER": "yaml"}, "WORKER_SERIALIZER"),
        ({"WORKER_MAX_PAYLOAD_BYTES": 0}, "WORKER_MAX_PAYLOAD_BYTES"),
        (
            {"WORKER_SIGNING_KEY": "k" * 32 + "\nshort"},
            "WORKER_SIGNING_KEY: each line is a key and needs at least 32 characters",
        ),
        ({"REDIS_URL": "http://h"}, "REDIS_URL must begin with redis://"),
        ({"REDIS_URL": "redis://h?ssl_cert_reqs=none"}, "must have no query"),
        ({"REDIS_URL": "redis://h:port"}, "the port in REDIS_URL is not a number"),
        ({"REDIS_URL": "redis://h/2"}, "REDIS_URL names database 2, but REDIS_DB=0"),
        (
            {"WORKER_JOB_COMPLETION_WAIT": 60},
            "WORKER_JOB_COMPLETION_WAIT=60 must be less than WORKER_STOP_GRACE_SECONDS=45 by 12 s",
        ),
        ({"WORKER_JOB_COMPLETION_WAIT": 34}, "set WORKER_STOP_GRACE_SECONDS=46 or more"),
        ({"REDIS_SOCKET_KEEPALIVE_OPTIONS": {"1": 3}}, "TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT"),
        ({"REDIS_SSL_CA_CERTS": "/nope.crt"}, "REDIS_SSL_CA_CERTS=/nope.crt: there is no such file"),
        ({"WORKER_MAX_TRIES": 0}, "WORKER_MAX_TRIES"),
        ({"WORKER_QUEUES": " , "}, "WORKER_QUEUES"),
        (
            {"WORKER_BLOCKED_LOG_SECONDS": 60, "WORKER_BLOCKED_EXIT_SECONDS": 60},
            "WORKER_BLOCKED_LOG_SECONDS=60 must be less than WORKER_BLOCKED_EXIT_SECONDS=60",
        ),
        ({"WORKER_RETRY_BACKOFF_SECONDS": 9, "WORKER_RETRY_BACKOFF_MAX_SECONDS": 3}, "must not be more than"),
    ],
)
def test_what_cannot_work_is_said(values: dict[str, object], said: str) -> None:
    assert said in problems(**values)


def test_what_comes_after_a_drain_fits_into_its_margin() -> None:
    settings(WORKER_JOB_COMPLETION_WAIT=30, WORKER_STOP_GRACE_SECONDS=30 + STOP_MARGIN_S)
    most = worker.LAST_REPLY_S + worker.GIVE_BACK_S + keeper.JOIN_S + pulse.FORGET_S
    assert runner.CANCEL_WAIT_S < worker.GIVE_BACK_S
    assert most + 2 <= STOP_MARGIN_S == limits.STOP_MARGIN_S


def test_all_problems_are_said_at_once() -> None:
    said = problems(WORKER_MAX_TRIES=0, WORKER_PROCESSES="many")
    assert "WORKER_MAX_TRIES" in said
    assert "WORKER_PROCESSES" in said


def test_one_queues_variables_win_over_its_class_and_the_shared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_PHOTOS_MAX_JOBS", "3")
    monkeypatch.setenv("WORKER_PHOTOS_JOB_TIMEOUT", "7")
    monkeypatch.setenv("WORKER_PHOTOS_KEEP_RESULT", "0")
    monkeypatch.setenv("WORKER_PHOTOS_MAX_TRIES", "")

    @configured("photos")
    class WorkerSettings:
        max_jobs = 50
        max_tries = 9

    read = get_kwargs(WorkerSettings)
    assert (read["max_jobs"], read["job_timeout"], read["keep_result"], read["max_tries"]) == (3, 7, 0, 9)


def test_one_health_key_for_all_replicas_is_replaced() -> None:
    class WorkerSettings:
        health_check_key = "worker:health:system"

    assert configured("system")(WorkerSettings).health_check_key.startswith("worker:health:system:")


def test_a_queue_is_named_as_its_module() -> None:
    class WorkerSettings:
        queue_name = "jobs"

    with pytest.raises(ValueError, match="queue system: queue_name has to be 'arq:queue:system', not 'jobs'"):
        configured("system")(WorkerSettings)


def test_stock_arq_finds_every_setting_on_the_class_itself() -> None:
    for name in current().names:
        read = get_kwargs(current().load(name))
        assert read["queue_name"] == f"arq:queue:{name}"
        assert {"functions", "redis_settings", "max_jobs", "job_timeout", "keep_result", "max_tries"} <= read.keys()
        assert read["health_check_key"].startswith(f"worker:health:{name}:")


def test_an_unknown_queue_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="unknown queue 'nope': the queues are load_test, media, system"):
        current().load("nope")


def test_base_env_says_what_the_code_defaults_to() -> None:
    """A setting in one place and not in the other, or with another default, misleads who reads either."""
    documented = Settings(_env_file=ROOT / "env" / "base.env").model_dump()
    # A container's are not a checkout's; a server that is not this stack's may have no users; a project has any queues.
    different = {"REDIS_URL", "REDIS_URL_LOCAL", "REDIS_USERNAME", "WORKER_QUEUES"}
    defaults = settings().model_dump()
    assert {k for k in defaults if defaults[k] != documented[k]} <= different
    assert set(Settings.model_fields) - set(BASE) == {"REDIS_PASSWORD", "WORKER_SIGNING_KEY"}


#: What upstream's variables begin with. A team's may, too: those of its queues, of which there are some here already.
OURS = re.compile(r"(?!WORKER_[A-Z0-9_]+_(MAX_JOBS|JOB_TIMEOUT|KEEP_RESULT|MAX_TRIES))(WORKER|REDIS|LOG|APP|BACKUP)_")


def test_every_variable_of_compose_is_documented_and_every_documented_one_is_read() -> None:
    used = {
        name
        for file in (ROOT / "compose").glob("*.yml")
        for name in re.findall(
            r"\$\{([A-Z0-9_]+)", "\n".join(re.sub(r"(^|\s)#.*", "", x) for x in file.read_text().splitlines())
        )
    }
    assert used - set(BASE) - set(generate.values("dev")) == {"CA_BUNDLE"}  # the Makefile's
    read_by_ops = {"REDIS_TLS_NAMES", "BACKUP_AGE_RECIPIENT", "BACKUP_GPG_RECIPIENT"}
    assert read_by_ops <= set(BASE)
    unread = set(BASE) - used - read_by_ops - set(generate.Settings.model_fields)
    assert not [name for name in unread if OURS.match(name)]


def test_the_page_has_every_setting() -> None:
    page = generate.page()
    for name in {*Settings.model_fields, *BASE}:
        assert f"`{name}`" in page
    for name in QueueOverrides.model_fields:
        assert f"`WORKER_<QUEUE>_{name}`" in page
