"""The checks of `make doctor`, on given facts: what each takes for good, and for what it is there."""

from __future__ import annotations

import copy
import json
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ops.config import units
from ops.config.environment import Environment
from ops.look import doctor
from ops.look.doctor import credentials, drift, host, queues, rules, running
from ops.look.doctor.facts import Facts
from ops.look.doctor.finding import Finding, Unavailable

GIB = 1 << 30

ENGINE = {
    "ServerVersion": "27.1.0",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "MemTotal": 8 * GIB,
    "NCPU": 4,
    "DockerRootDir": "/",
    "IndexServerAddress": "https://127.0.0.1/v1/",
}
HARDENED: dict[str, Any] = {
    "init": True,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "user": "10001:10001",
    "healthcheck": {"interval": "1s"},
    "logging": {"options": {"max-size": "10m"}},
    "restart": "no",
    "stop_grace_period": "45s",
    "networks": {"backend": None},
    "deploy": {"replicas": 2, "resources": {"limits": {"cpus": 2, "memory": str(GIB), "pids": 512}}},
}
MODEL: dict[str, Any] = {
    "services": {
        "worker": HARDENED
        | {
            "image": "app:1",
            "build": {},
            "command": ["worker"],
            "environment": {"WORKER_JOB_COMPLETION_WAIT": "30", "PRICE": "5$$"},
            "volumes": [{"type": "volume", "source": "data", "target": "/data"}],
            "secrets": [{"source": "password", "target": "/run/secrets/password"}],
        },
        "redis": HARDENED
        | {
            "image": "redis:8",
            "command": ["redis-server", "/etc/redis/redis.conf", "--maxmemory", "512mb"],
            "ports": [{"host_ip": "127.0.0.1", "target": 6379, "published": "6379"}],
        },
    },
    "networks": {"backend": {"name": "test_backend"}},
    "volumes": {"data": {"name": "test_data"}},
    "secrets": {"password": {"file": "/secrets/password"}},
}
WORKER: dict[str, Any] = {
    "Name": "/test-worker-1",
    "Image": "sha256:1",
    "RestartCount": 0,
    "Config": {
        "Labels": {"com.docker.compose.service": "worker"},
        "Env": ["WORKER_JOB_COMPLETION_WAIT=30", "PRICE=5$", "PATH=/bin", "HTTP_PROXY=http://proxy"],
        "Cmd": ["worker"],
        "User": "10001:10001",
        "StopTimeout": 45,
        "Healthcheck": {"Interval": 10**9},
    },
    "HostConfig": {
        "NanoCpus": 2 * 10**9,
        "Memory": GIB,
        "PidsLimit": 512,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Config": {"max-size": "10m"}},
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "OomScoreAdj": 0,
        "PortBindings": {},
    },
    "NetworkSettings": {"Networks": {"test_backend": {}}},
    "Mounts": [
        {"Type": "volume", "Name": "test_data", "Source": "/var/lib/docker/x", "Destination": "/data"},
        {"Type": "bind", "Source": "/secrets/password", "Destination": "/run/secrets/password"},
    ],
    "State": {
        "Status": "running",
        "Running": True,
        "OOMKilled": False,
        "StartedAt": "2026-01-01T00:00:00.123456789Z",
        "Health": {"Status": "healthy"},
    },
}
IMAGES = {"app:1": {"Id": "sha256:1", "Config": {"Env": ["PATH=/bin"], "Labels": None}, "RepoDigests": []}}
REDIS: dict[str, Any] = {
    "info": {
        "redis_version": "8.0.2",
        "uptime_in_seconds": "9",
        "used_memory": str(100 << 20),
        "maxmemory": str(512 << 20),
        "connected_clients": "7",
        "maxclients": "10000",
        "aof_enabled": "1",
        "aof_last_write_status": "ok",
    },
    "config": {"maxmemory": str(512 << 20), "maxmemory-policy": "noeviction", "notify-keyspace-events": "zK"},
    "users": {},
    "skew": 0.0,
}
QUEUE: dict[str, Any] = {
    "queue": "system",
    "due": 0,
    "dead": 0,
    "oldest_due_s": None,
    "paused": False,
    "replicas": [{"alive": True, "max_jobs": 15}, {"alive": False}],
}
VALUES = {
    "APP_ENV": "prod",
    "COMPOSE_FILE": "compose/base.yml",
    "REDIS_MAX_CONNECTIONS": "100",
    "WORKER_QUEUES": "system",
    "REDIS_TLS_NAMES": "",
}


def with_(base: Any, value: Any, *path: Any) -> Any:
    """Return a copy with another value at a path."""
    changed = copy.deepcopy(base)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return changed


def facts(**given: Any) -> Facts:
    """Good facts but for those given; ``kernel`` is what a file of the kernel says."""
    found = Facts("test")
    found.known |= {
        "engine": ENGINE,
        "compose_version": "v2.24.0",
        "model": MODEL,
        "environment": Environment("test", (), VALUES),
        "containers": [WORKER, WORKER],
        "images": IMAGES,
        "redis": REDIS,
        "queues": [QUEUE],
        "meminfo": {"MemTotal": 8 * GIB, "MemAvailable": 4 * GIB, "SwapTotal": 2 * GIB, "SwapFree": 2 * GIB},
    }
    if "kernel" in given:
        text = given.pop("kernel")
        found.kernel = lambda path: text  # type: ignore[method-assign]
    found.known |= given
    return found


Check = Callable[[Facts], Finding | None]


@dataclass(frozen=True)
class Case:
    check: Check
    status: str
    says: str
    given: dict[str, Any]


def case(check: Check, status: str, says: str, **given: Any) -> Any:
    return pytest.param(Case(check, status, says, given), id=f"{check.__name__}: {status} {says}")


def service(value: Any, *path: Any, name: str = "worker") -> Any:
    return with_(MODEL, value, "services", name, *path)


def worker(value: Any, *path: Any) -> Any:
    return [with_(WORKER, value, *path), WORKER]


def redis(**info: str) -> Any:
    return with_(REDIS, REDIS["info"] | info, "info")


def queue(**changes: Any) -> Any:
    return [QUEUE | changes]


HEALTH = ("State", "Health", "Status")
MOVED = {"app:1": IMAGES["app:1"] | {"Id": "sha256:2"}}
LOOPING = WORKER | {"RestartCount": 3, "State": WORKER["State"] | {"Status": "restarting"}}
UP = [WORKER, WORKER, *[with_(WORKER, {"com.docker.compose.service": "redis"}, "Config", "Labels")] * 2]
STAND_IN = {"redis:8": {"Config": {"Labels": {"aegis.stand-in": "true"}}}}
PULLED = {"redis:8": {"Config": {"Labels": None}, "RepoDigests": ["redis@sha256:abc"]}}


@pytest.mark.parametrize(
    "case",
    [
        case(host.engine, "ok", "27.1.0"),
        case(host.engine, "fail", "20.10 or newer", engine=ENGINE | {"ServerVersion": "19.03.1"}),
        case(host.compose, "ok", "2.24.0"),
        case(host.compose, "fail", "2.24 or newer", compose_version="2.23.3-desktop.1"),
        case(host.cgroups, "ok", "version 2"),
        case(host.cgroups, "fail", "no limits of memory", engine=ENGINE | {"MemoryLimit": False}),
        case(host.cgroups, "warn", "no limit of processes", engine=ENGINE | {"PidsLimit": False}),
        case(host.cgroups, "warn", "no limit of swap", engine=ENGINE | {"SwapLimit": False}),
        case(host.overcommit, "ok", "=1", kernel="1"),
        case(host.overcommit, "warn", "=0", kernel="0"),
        case(host.huge_pages, "ok", "madvise", kernel="always [madvise] never"),
        case(host.huge_pages, "warn", "always", kernel="[always] madvise never"),
        case(host.swap, "ok", "0.0 GiB of 2.0 GiB"),
        case(host.swap, "warn", "short of memory", meminfo={"SwapTotal": 2 * GIB, "SwapFree": GIB // 2}),
        case(host.memory, "ok", "add up to 4.0 GiB"),
        case(host.memory, "fail", "add up to 4.0 GiB", engine=ENGINE | {"MemTotal": 2 * GIB}),
        case(host.free_memory, "ok", "4.0 GiB of 8.0 GiB"),
        case(host.free_memory, "warn", "may take 2.0 GiB", meminfo={"MemTotal": 8 * GIB, "MemAvailable": GIB}),
        case(host.free_memory, "ok", "1.0", containers=UP, meminfo={"MemTotal": 8 * GIB, "MemAvailable": GIB}),
        case(host.free_memory, "warn", "0.1", containers=UP, meminfo={"MemTotal": 8 * GIB, "MemAvailable": GIB // 10}),
        case(host.cpus, "ok", "worker 2"),
        case(host.cpus, "fail", "the machine has 1", engine=ENGINE | {"NCPU": 1}),
        case(rules.hardening, "ok", "worker, redis"),
        case(rules.hardening, "warn", "worker: read_only", model=service(False, "read_only")),
        case(rules.hardening, "warn", "worker: cap_drop", model=service(["SYS_ADMIN"], "cap_add")),
        case(rules.hardening, "warn", "worker: no-new-privileges", model=service([], "security_opt")),
        case(rules.hardening, "warn", "worker: user", model=service("0:0", "user")),
        case(rules.hardening, "warn", "worker: healthcheck", model=service({"disable": True}, "healthcheck")),
        case(rules.hardening, "warn", "worker: log rotation", model=service({}, "logging")),
        case(rules.hardening, "warn", "limit of cpus, limit of memory, limit of pids", model=service({}, "deploy")),
        case(rules.published_ports, "ok", "redis 127.0.0.1:6379"),
        case(rules.published_ports, "fail", "8080", model=service([{"published": "8080"}], "ports")),
        case(rules.drain, "ok", "30 s, killed after 45 s"),
        case(rules.drain, "fail", "killed after 40 s", model=service("40s", "stop_grace_period")),
        case(rules.redis_memory_limit, "ok", "maxmemory 512 MiB, limit 1024 MiB"),
        case(
            rules.redis_memory_limit, "fail", "a save has no room",
            model=service(["--maxmemory", "1gb"], "command", name="redis"),
        ),
        case(rules.redis_rules, "ok", "noeviction"),
        case(
            rules.redis_rules, "fail", "maxmemory-policy noeviction, appendonly yes, notify-keyspace-events Kz",
            model=service(
                ["--maxmemory-policy", "allkeys-lru", "--appendonly", "no", "--notify-keyspace-events", "K"],
                "command", name="redis",
            ),
        ),
        case(rules.pinned_images, "ok", "redis:8", images=STAND_IN),
        case(rules.pinned_images, "warn", "redis:8", images=PULLED),
        case(rules.pinned_images, "ok", "redis@sha256:abc", model=service("redis@sha256:abc", "image", name="redis")),
        case(running.replicas, "warn", "down", containers=[]),
        case(running.replicas, "fail", "worker 2 of 2, redis 0 of 2"),
        case(running.replicas, "ok", "worker 2 of 2, redis 2 of 2", containers=UP),
        case(running.replicas, "warn", "worker 3 of 2", containers=[*UP, WORKER]),
        case(running.container_health, "ok", "healthy"),
        case(running.container_health, "fail", "unhealthy", containers=worker("unhealthy", *HEALTH)),
        case(running.container_health, "fail", "is paused", containers=worker("paused", "State", "Status")),
        case(running.container_health, "warn", "starting", containers=worker("starting", *HEALTH)),
        case(running.restarts, "ok", "none"),
        case(running.restarts, "warn", "test-worker-1 2", containers=worker(2, "RestartCount")),
        case(running.restarts, "fail", "exits right after its start", containers=[LOOPING]),
        case(running.out_of_memory, "ok", "none"),
        case(running.out_of_memory, "fail", "test-worker-1", containers=worker(True, "State", "OOMKilled")),
        case(running.drift, "ok", "what is configured"),
        case(running.drift, "warn", "worker differs by image", images=MOVED),
        case(running.drift, "warn", "worker differs by command", containers=worker(["other"], "Config", "Cmd")),
        case(running.drift, "warn", "NEW", model=service("1", "environment", "NEW")),
        case(running.drift, "warn", "OLD", containers=worker([*WORKER["Config"]["Env"], "OLD=1"], "Config", "Env")),
        case(running.orphans, "ok", "none"),
        case(running.orphans, "warn", "test-worker-1", model=MODEL | {"services": {}}),
        case(queues.redis, "ok", "Redis 8.0.2"),
        case(queues.redis, "ok", "Valkey 9.0.1", redis=redis(server_name="valkey", valkey_version="9.0.1")),
        case(queues.redis_clock, "ok", "it agrees with this machine's"),
        case(queues.redis_clock, "warn", "9 s", redis=REDIS | {"skew": 9.0}),
        case(queues.persistence, "ok", "went well"),
        case(queues.persistence, "fail", "rdb_last_bgsave_status", redis=redis(rdb_last_bgsave_status="err")),
        case(queues.persistence, "fail", "append-only file is off", redis=redis(aof_enabled="0")),
        case(queues.redis_memory, "ok", "100 of 512 MiB"),
        case(queues.redis_memory, "warn", "will refuse", redis=redis(used_memory=str(450 << 20))),
        case(queues.redis_memory, "fail", "refuses new jobs", redis=redis(used_memory=str(512 << 20))),
        case(queues.redis_memory, "fail", "no maxmemory", redis=redis(maxmemory="0")),
        case(queues.connections, "ok", "7 of 10000"),
        case(queues.connections, "warn", "7 of 8", redis=redis(maxclients="8")),
        case(queues.redis_configuration, "ok", "as configured"),
        case(
            queues.redis_configuration, "warn", "another maxmemory-policy",
            redis=with_(REDIS, "allkeys-lru", "config", "maxmemory-policy"),
        ),
        case(queues.served, "ok", "system by 1"),
        case(queues.served, "fail", "no replica serves system; 3 jobs wait", queues=queue(replicas=[], due=3)),
        case(queues.served, "ok", "system by 1", queues=[QUEUE, QUEUE | {"queue": "media", "replicas": []}]),
        case(queues.backlog, "ok", "system 0 due"),
        case(queues.backlog, "warn", "system 5 jobs, 90 s", queues=queue(due=5, oldest_due_s=90.2)),
        case(queues.backlog, "warn", "paused: system", queues=queue(paused=True)),
        case(queues.dead_letters, "ok", "none"),
        case(queues.dead_letters, "warn", "system 2", queues=queue(dead=2)),
        case(queues.slots, "ok", "100 connections"),
        case(queues.slots, "warn", "system 101", queues=queue(replicas=[{"alive": True, "max_jobs": 101}])),
    ],
)  # fmt: skip
def test_each_check_can_tell(case: Case) -> None:
    finding = case.check(facts(**case.given))
    assert finding is not None
    assert (finding.status, case.says in finding.fact) == (case.status, True), finding
    assert bool(finding.fix) == (finding.status != "ok")


@pytest.mark.parametrize(
    ("check", "given"),
    [
        (host.swap, {"meminfo": Unavailable()}),
        (host.dns, {"engine": ENGINE | {"HttpsProxy": "http://proxy:3128"}}),
        (rules.redis_rules, {"model": MODEL | {"services": {}}}),
        (rules.pinned_images, {"environment": Environment("test", (), VALUES | {"APP_ENV": "dev"})}),
        (credentials.certificate_expiry, {}),
        *((check, {"containers": []}) for check in running.CHECKS[2:]),
        (queues.served, {"queues": Unavailable()}),
        (queues.persistence, {"redis": Unavailable()}),
    ],
)
def test_a_check_with_nothing_to_look_at_says_nothing(check: Check, given: dict[str, Any]) -> None:
    assert not doctor.findings(check, facts(**given), [])


def test_a_file_that_the_kernel_does_not_have_is_no_fact() -> None:
    with pytest.raises(Unavailable) as caught:
        Facts.kernel("/proc/nope")
    assert not caught.value.findings


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.python(facts()).status == "ok"
    monkeypatch.setattr(host, "find_spec", lambda _: None)
    assert host.python(facts()).status == "warn"


@pytest.mark.parametrize(("free", "status"), [(6 * GIB, "ok"), (2 * GIB, "warn"), (GIB // 2, "fail")])
def test_disk(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    finding = host.disk(facts())
    assert finding.status == status


@pytest.mark.parametrize(("state", "status"), [(0, "ok"), (host.TIME_ERROR, "warn")])
def test_clock(monkeypatch: pytest.MonkeyPatch, state: int, status: str) -> None:
    assert host.kernel_clock() in range(6)
    monkeypatch.setattr(host, "kernel_clock", lambda: state)
    finding = host.clock(facts())
    assert finding is not None
    assert finding.status == status


def test_names_and_the_way_to_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = facts(engine=ENGINE | {"IndexServerAddress": "https://registry.invalid/v1/"})
    assert host.dns(facts()).status == "ok"
    assert "registry.invalid has no address" in host.dns(unknown).fact
    assert host.registry(unknown) is None, "it is told already"
    assert host.registry(facts(engine=ENGINE | {"HttpsProxy": "http://proxy:3128"})).fact == "by the proxy proxy"
    monkeypatch.setattr(host, "CONNECTS_WITHIN_S", 0.2)
    assert "127.0.0.1 does not answer" in host.registry(facts()).fact


# -- what the checks are made of -----------------------------------------------------------------------------------


def test_what_redis_is_configured_to() -> None:
    command = ["redis-server", "/etc/redis.conf", "--maxmemory", "1gb", "--tls-protocols", "TLSv1.2 TLSv1.3"]
    text = '# comment\n\nmaxmemory 256mb\nsave 900 1 300 10\nlogfile ""\n'
    assert rules.settings(text, command) == {
        "maxmemory": "1gb", "save": "900 1 300 10", "logfile": "", "tls-protocols": "TLSv1.2 TLSv1.3"
    }  # fmt: skip
    assert queues.canonical("256mb") == queues.canonical(str(256 << 20))
    assert queues.canonical("Kz") == queues.canonical("zK")
    assert queues.canonical("yes") != queues.canonical("no")


def test_durations_and_versions() -> None:
    assert [units.seconds(text) for text in ("45s", "1m0s", "1h0m30s", "500ms")] == [45, 60, 3630, 0.5]
    assert host.number("v2.40.3-desktop.1") == (2, 40)


def test_a_container_that_gets_up_is_no_loop() -> None:
    now = time.time()
    assert not running.loops(LOOPING | {"State": WORKER["State"]}, now), "it has been up since long"
    lately = WORKER["State"] | {"StartedAt": time.strftime("%Y-%m-%dT%H:%M:%S.5Z", time.gmtime(now - 9))}
    assert running.loops(WORKER | {"RestartCount": 3, "State": lately}, now)
    assert not running.loops(WORKER | {"RestartCount": 2, "State": lately}, now)


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("HostConfig", "Memory"), 1, "memory"),
        (("HostConfig", "NanoCpus"), 1, "cpus"),
        (("HostConfig", "PidsLimit"), None, "pids"),
        (("HostConfig", "RestartPolicy"), {"Name": "always"}, "restart"),
        (("HostConfig", "LogConfig"), {"Config": {"max-size": "1m"}}, "logging"),
        (("HostConfig", "ReadonlyRootfs"), False, "read_only"),
        (("HostConfig", "CapDrop"), None, "cap_drop"),
        (("HostConfig", "OomScoreAdj"), 500, "oom_score_adj"),
        (("HostConfig", "PortBindings"), {"80/tcp": [{"HostIp": "", "HostPort": "80"}]}, "ports"),
        (("NetworkSettings", "Networks"), {"other": {}}, "networks"),
        (("Mounts", 1, "Source"), "/elsewhere", "volumes"),
        (("Config", "Cmd"), ["other"], "command"),
        (("Config", "User"), "0", "user"),
        (("Config", "StopTimeout"), 10, "stop_grace_period"),
        (("Config", "Healthcheck"), None, "healthcheck"),
        (("Config", "Env"), ["PRICE=5$", "PATH=/bin"], "WORKER_JOB_COMPLETION_WAIT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_drift_is_told_by_name(path: tuple[Any, ...], value: Any, key: str) -> None:
    assert drift.differences(WORKER, "worker", MODEL, IMAGES["app:1"]) == []
    assert drift.differences(with_(WORKER, value, *path), "worker", MODEL, IMAGES["app:1"]) == [key]
    assert drift.differences(WORKER, "worker", MODEL, None) == [], "without the image there is less to compare"


# -- the report ----------------------------------------------------------------------------------------------------


def without_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def test_what_is_missing_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_docker(monkeypatch)
    lines = list(doctor.examine(Facts("dev")))
    told = [line for line in lines if "not installed" in line.finding.fact]
    assert [(line.check, line.finding.fix) for line in told] == [("engine", "make engine")]
    checks = {line.check for line in lines}
    assert {"overcommit", "environment", "secrets_in_env_files"} <= checks
    assert not {"cgroups", "hardening", "replicas", "redis"} & checks


def test_each_problem_of_the_configuration_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    without_docker(monkeypatch)
    monkeypatch.setenv("WORKER_REPLICAS", "x")
    monkeypatch.setenv("REDIS_MAXMEMORY", "y")
    lines = [line for line in doctor.examine(Facts("dev")) if line.check == "environment"]
    assert [line.finding.status for line in lines] == ["fail", "fail"]
    assert {line.finding.fact.partition("=")[0] for line in lines} == {"WORKER_REPLICAS", "REDIS_MAXMEMORY"}


def test_a_check_that_breaks_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Facts) -> Finding:
        raise KeyError("x")

    monkeypatch.setattr(doctor, "GROUPS", {"some": (breaks, host.python)})
    first, second = doctor.examine(Facts("dev"))
    assert first.finding.status == "fail"
    assert first.finding.fact == "the check itself failed: KeyError: 'x'"
    assert second.check == "python"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Any, code: int
) -> None:
    def some_check(_: Facts) -> Finding:
        return Finding(status, "a fact", "" if status == "ok" else "a fix")

    monkeypatch.setattr(doctor, "GROUPS", {"some": (some_check,), "none": (lambda _: None,)})
    assert doctor.run(Namespace(env="dev", json=False)) == code
    head, line, _, summary = capsys.readouterr().out.splitlines()
    assert head == "some"
    fix = "" if status == "ok" else "a fix"
    assert line.split() == [status, "some", "check", "a", "fact", *(["→", "a", "fix"] if fix else [])]
    assert f"1 {status}" in summary
    assert summary.endswith("; 1 skipped, because something that they need is missing")
    assert doctor.run(Namespace(env="dev", json=True)) == code
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {"check": "some_check", "status": status, "fact": "a fact", "fix": fix}


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.__name__ for checks in doctor.GROUPS.values() for check in checks]
    assert len(names) == len(set(names))
