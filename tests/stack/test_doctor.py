"""`make doctor` on a real stack, sound and broken in turn; and where there is no stack yet, or no engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.test_tls import expire
from tests.stack.conftest import MakeStack, Stack, eventually, inspect

Found = dict[str, list[dict[str, str]]]


def doctor(stack: Stack, python: str = "python3", **variables: str) -> tuple[int, Found]:
    """Return its exit code, and by check what it found."""
    done = stack.run(python, "-m", "ops", "--env", stack.env, "doctor", "--json", check=False, **variables)
    found: Found = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["check"], []).append(finding)
    return done.returncode, found


def of(found: Found, *statuses: str) -> dict[str, str]:
    """The facts of the checks that found this."""
    return {check: each["fact"] for check, all_ in found.items() for each in all_ if each["status"] in statuses}


@contextmanager
def edited(file: Path, *, old: str = "", new: str) -> Iterator[None]:
    """A file with other text, in place, for a while."""
    before = file.read_text()
    file.write_text(before.replace(old, new) if old else before + new)
    try:
        yield
    finally:
        file.write_text(before)


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def bare(make_stack: MakeStack) -> Stack:
    """A checkout, and nothing done in it yet."""
    return make_stack("dev")


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Stack:
    stack = make_stack("prod")
    stack.make("up")
    return stack


# -- where nothing is up -------------------------------------------------------------------------------------------


def test_before_the_first_up(bare: Stack) -> None:
    code, found = doctor(bare)
    assert (code, of(found, "fail")) == (0, {})
    warnings = of(found, "warn")
    assert warnings["folder"] == "there are none yet"
    assert warnings["replicas"] == "the stack is down"
    assert found["replicas"][0]["fix"] == "make up ENV=dev"
    assert {"hardening", "drain", "redis_rules", "memory", "free_ports"} <= of(found, "ok").keys()
    assert not (bare.folder / "secrets").exists()
    assert not (bare.folder / ".local").exists(), "it only looks"


def test_without_an_engine(bare: Stack) -> None:
    code, found = doctor(bare, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert code == 1
    assert of(found, "fail").keys() == {"engine"}
    assert "no engine answers" in found["engine"][0]["fact"]
    assert "hardening" in of(found, "ok"), "Compose needs no engine to merge"


def test_without_docker(bare: Stack, tmp_path: Path) -> None:
    code, found = doctor(bare, sys.executable, PATH=str(tmp_path))
    assert code == 1
    assert of(found, "fail") == {"engine": "Docker is not installed here"}
    assert "environment" in of(found, "ok")


def test_a_configuration_that_is_wrong(bare: Stack) -> None:
    with edited(bare.local_file, new="WORKER_REPLICAS=some\nWORKER_STOP_GRACE_SECONDS=1\n"):
        code, found = doctor(bare)
    assert code == 1
    first, second = sorted(each["fact"] for each in found["environment"])
    assert "WORKER_JOB_COMPLETION_WAIT=5 has to be less than WORKER_STOP_GRACE_SECONDS=1" in first
    assert "WORKER_REPLICAS=some" in second
    assert "engine" in of(found, "ok")


def test_a_layer_that_loosens(bare: Stack) -> None:
    layer = bare.folder / "compose" / "dev.yml"
    with edited(layer, old='ports: ["127.0.0.1:', new='read_only: false\n    ports: ["'):
        code, found = doctor(bare)
    assert code == 1
    assert of(found, "fail") == {"published_ports": f"published beyond 127.0.0.1, past the firewall: redis {bare.port}"}
    assert of(found, "warn")["hardening"] == "without redis: read_only"


# -- a stack that is up --------------------------------------------------------------------------------------------


def test_a_healthy_stack(stack: Stack) -> None:
    began = time.monotonic()
    code, found = doctor(stack)
    assert time.monotonic() - began < 20, "it takes one where nobody else has the machine"
    assert (code, of(found, "fail")) == (0, {})
    good = of(found, "ok")
    assert good["replicas"] == "redis 1 of 1, worker 1 of 1"
    assert good["drift"] == "what runs is what is configured"
    assert good["served"] == "system by 1, load_test by 1"
    assert good["networks"].startswith(f"{stack.project}_internal (internal)")
    assert {"redis_configuration", "redis_users", "redis_clock", "persistence", "certificate_keys"} <= good.keys()


def test_it_is_for_people_too(stack: Stack) -> None:
    said = stack.make("doctor").stdout
    lines = {line[8:28].strip(): line for line in said.splitlines()}
    assert lines["engine"].startswith("  ok    engine")
    assert "redis_client.crt 39" in lines["certificate expiry"]
    assert "\033" not in said
    assert ", 0 fail" in said.splitlines()[-1]
    folder = stack.folder / "secrets" / "prod"
    assert not any(file.read_text() in said for file in folder.iterdir() if file.stat().st_size)


def test_it_only_looks_in_a_dry_run_as_well(stack: Stack) -> None:
    assert "drift" in stack.make("doctor", "DRY_RUN=1").stdout


def test_an_environment_that_was_edited(stack: Stack) -> None:
    with edited(stack.local_file, new="LOG_LEVEL=DEBUG\nWORKER_MEMORY_LIMIT=1G\nREDIS_MAXMEMORY=300mb\n"):
        code, found = doctor(stack)
    assert code == 0
    redis, worker = sorted(of(found, "warn")["drift"].split("; "))
    assert redis == "redis differs by command"
    assert worker == "worker differs by memory, LOG_LEVEL, REDIS_MAXMEMORY, WORKER_MEMORY_LIMIT"
    assert of(found, "warn")["redis_configuration"] == "Redis runs with another maxmemory"


def test_a_redis_conf_that_was_edited(stack: Stack) -> None:
    conf = stack.folder / "redis" / "redis.conf"
    with edited(conf, old="appendonly yes\n", new="appendonly no\ntimeout 60\n"):
        code, found = doctor(stack)
    assert code == 1
    assert of(found, "fail").keys() == {"redis_rules"}
    assert of(found, "warn")["redis_configuration"] == "Redis runs with another appendonly, timeout"
    assert found["redis_configuration"][0]["fix"] == "make deploy-redis ENV=prod"


def test_secrets_that_are_open(stack: Stack) -> None:
    folder = stack.folder / "secrets" / "prod"
    folder.chmod(0o755)
    try:
        code, found = doctor(stack)
    finally:
        folder.chmod(0o700)
    assert code == 1
    assert of(found, "fail") == {"folder": "secrets/prod/ 0755: others on this host can enter it"}
    assert found["folder"][0]["fix"] == "chmod 700 secrets/prod"


def test_a_certificate_that_has_expired(stack: Stack) -> None:
    folder = stack.folder / "secrets" / "prod"
    kept = stack.folder / "kept"
    shutil.copytree(folder, kept)
    expire(folder, "redis_client")
    try:
        code, found = doctor(stack)
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)
    assert code == 1
    assert of(found, "fail").keys() == {"certificate_expiry"}
    assert found["certificate_expiry"][0]["fix"] == "make certs ENV=prod"


def test_a_change_that_was_cut_short(stack: Stack) -> None:
    file = stack.folder / ".local" / "prod.lock"
    with edited(file, new=json.dumps({"command": "up", "by": "ada", "pid": 1, "since": time.time()})):
        code, found = doctor(stack)
    assert code == 0
    assert of(found, "warn")["change"].startswith("interrupted: up by ada")


# -- a stack that is broken; what is stopped here is started again -------------------------------------------------


@contextmanager
def broken(stack: Stack, service: str, harm: str, fix: str) -> Iterator[None]:
    """A service to which something is done for a while; all is healthy again after it."""
    docker(harm, stack.container(service))
    try:
        yield
    finally:
        docker(fix, stack.container(service))
        for container in map(stack.container, ("redis", "worker")):
            eventually(lambda one=container: inspect(one)["State"]["Health"]["Status"] == "healthy")


def test_a_container_that_is_paused(stack: Stack) -> None:
    with broken(stack, "redis", "pause", "unpause"):
        code, found = doctor(stack)
    assert code == 1
    assert f"{stack.project}-redis-1 is paused" in of(found, "fail")["container_health"]
    assert found["container_health"][0]["fix"] == f"docker unpause {stack.project}-redis-1"


def test_a_worker_that_is_killed(stack: Stack) -> None:
    with broken(stack, "worker", "kill", "start"):
        code, found = doctor(stack)
    assert code == 1
    failed = of(found, "fail")
    assert "worker 0 of 1" in failed["replicas"]
    assert failed["container_health"] == f"{stack.project}-worker-1 is exited"
    assert "redis_memory" in of(found, "ok")


def test_redis_that_is_stopped(stack: Stack) -> None:
    with broken(stack, "redis", "stop", "start"):
        code, found = doctor(stack)
    assert code == 1
    assert "redis 0 of 1" in of(found, "fail")["replicas"]
    assert "served" not in found


def test_what_does_not_belong_to_it(stack: Stack) -> None:
    labels = {"project": stack.project, "service": "old", "oneoff": "False"}
    options = [part for name, value in labels.items() for part in ("--label", f"com.docker.compose.{name}={value}")]
    docker("create", "--name", f"{stack.project}-old-1", *options, "redis:8-alpine")
    try:
        _, found = doctor(stack)
    finally:
        docker("rm", "--volumes", f"{stack.project}-old-1")
    assert found["orphans"][0]["fix"] == f"docker rm -f {stack.project}-old-1"
