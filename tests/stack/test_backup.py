"""Backups of a stack that is busy, brought back elsewhere; Redis on other images; and all of it cut short."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack.conftest import MakeStack, Stack
from tests.stack.producer import QUEUE, ends, sending

PAUSE_S = 1.0
DEAD, DEFERRED = 5, 3
#: Dead letters, jobs of a queue that nobody serves, one of them with a payload that is about to expire.
PUT = """
for i = 1, ARGV[1] do
  redis.call('ZADD', 'worker:dead:system', i, 'dead-' .. i)
  redis.call('HSET', 'worker:letters:system', 'letter:dead-' .. i, '{}', 'payload:dead-' .. i, 'x')
end
for i = 1, ARGV[2] do
  redis.call('ZADD', 'arq:queue:media', 4e12 + i, 'deferred-' .. i)
  redis.call('SET', 'arq:job:deferred-' .. i, 'x', 'PX', i == 1 and 6000 or 86400000)
end
"""


@pytest.fixture(scope="module")
def dev(make_stack: MakeStack) -> Stack:
    """With Redis 7, so that there is something to upgrade."""
    stack = make_stack("dev", REDIS_IMAGE="redis:7-alpine", WORKER_QUEUES="load_test", WORKER_KEEP_RESULT_SECONDS="900")
    stack.make("up")
    return stack


@pytest.fixture(scope="module")
def prod(make_stack: MakeStack) -> Stack:
    """Another environment with its own Redis, version and database; it is down, and has nothing."""
    return make_stack("prod", WORKER_QUEUES="load_test", WORKER_REPLICAS="2", WORKER_MEMORY_RESERVATION="128M")


@pytest.fixture(scope="module")
def taken(dev: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A backup made under load, and the jobs that Redis had taken before it began."""
    folder = dev.folder / "backups"
    folder.mkdir(mode=0o700)
    for name in ("dev-20200101T000000Z.tar", "dev-20200102T000000Z.tar", "dev-replaced-20200101T000000Z.tar"):
        (folder / name).touch()
    dev.redis("eval", PUT, "0", str(DEAD), str(DEFERRED))
    with sending(dev, "before", 0.005) as sent:
        time.sleep(2)
        before = list(sent.ids)
        done = dev.make("backup", "KEEP=2")
        assert len(sent.ids) > len(before)
    assert sent.longest_gap < PAUSE_S
    assert re.search(r"Redis stood still for [\d.]+ ms", done.stderr)
    assert len(before) > 50
    latest, *others = sorted(archives(dev, "dev-2"), reverse=True)
    assert [file.name for file in others] == ["dev-20200102T000000Z.tar"]
    assert (folder / "dev-replaced-20200101T000000Z.tar").exists()
    return Path(shutil.copy(latest, tmp_path_factory.mktemp("taken"))), before


def archives(stack: Stack, start: str) -> list[Path]:
    return sorted((stack.folder / "backups").glob(f"{start}*.tar"))


def keys(stack: Stack, prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in stack.redis("keys", f"{prefix}*").split()}


def is_done(stack: Stack, ids: list[str], within_s: float = 60) -> bool:
    """Whether each job has a result, as soon as the queue is empty."""
    deadline = time.monotonic() + within_s
    while stack.redis("zcard", QUEUE) != "0" and time.monotonic() < deadline:
        time.sleep(0.3)
    return set(ids) <= keys(stack, "arq:result:")


def has_what_was_put(stack: Stack) -> bool:
    counts = [
        stack.redis(*command.split())
        for command in ("zcard worker:dead:system", "hlen worker:letters:system", "zcard arq:queue:media")
    ]
    payloads = keys(stack, "arq:job:deferred-")
    return (counts, payloads) == ([str(DEAD), str(2 * DEAD), str(DEFERRED)], {str(i + 1) for i in range(DEFERRED)})


def running(stack: Stack) -> list[str]:
    return sorted(stack.compose("ps", "--format", "{{.Service}}").split())


def started_at(stack: Stack) -> str:
    return str(stack.inspect("redis")["State"]["StartedAt"])


def test_no_job_that_was_taken_is_missing_elsewhere(prod: Stack, taken: tuple[Path, list[str]]) -> None:
    file, before = taken
    done = prod.make("restore", f"FILE={file}")
    assert f"ENV=prod is down: `make up ENV={prod.env}`" in done.stderr
    assert running(prod) == []
    prod.make("up")
    assert is_done(prod, before)
    assert has_what_was_put(prod), "in a database of another number, and what has expired meanwhile, too"
    assert prod.redis("-n", "0", "dbsize") == "0"


def test_what_is_damaged_or_not_allowed_changes_nothing(prod: Stack, taken: tuple[Path, list[str]]) -> None:
    file, _ = taken
    before = started_at(prod)
    damaged = prod.folder / "damaged.tar"
    text = bytearray(file.read_bytes())
    text[len(text) // 4] ^= 1
    damaged.write_bytes(text)
    for arguments, said in (
        ([f"FILE={damaged}", "YES=1"], "is damaged"),
        ([f"FILE={file}"], "ENV=prod is up: YES=1 stops it"),
        (["FILE=backups/nope.tar", "YES=1"], "there is no such file"),
    ):
        done = prod.make("restore", *arguments, check=False)
        assert done.returncode
        assert said in done.stderr
    key = prod.folder / "secrets" / "prod" / "worker_signing_key"
    key.write_text("k" * 40)
    done = prod.make("restore", f"FILE={file}", "YES=1", check=False)
    assert "worker_signing_key does not have the keys" in done.stderr
    key.write_text("")
    assert started_at(prod) == before
    assert running(prod) == ["redis", "worker", "worker"]
    assert has_what_was_put(prod)
    assert not archives(prod, "prod-replaced-")


def cut(stack: Stack, *command: str, when: Callable[[], object], number: signal.Signals) -> None:
    """Run a make target until something has come about; then end it, and all that it has started."""
    make = ["make", "--no-print-directory", f"ENV={stack.env}", *command]
    process = subprocess.Popen(
        make, cwd=stack.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    while not when():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)


def last_entry(stack: Stack) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((stack.folder / f".local/{stack.env}.journal").read_text().splitlines()[-1])
    return entry


def test_a_restore_that_is_cut_short_is_finished_by_the_next(prod: Stack, taken: tuple[Path, list[str]]) -> None:
    file, before = taken
    prod.redis("set", "app:mine", "kept")
    has_begun = {"event": "restore", "outcome": "begun"}
    steps: list[tuple[Callable[[], object], signal.Signals]] = [
        (lambda: has_begun.items() <= last_entry(prod).items() and "worker" not in running(prod), signal.SIGKILL),
        (lambda: archives(prod, "prod-replaced-"), signal.SIGKILL),
        (lambda: len(archives(prod, "prod-replaced-")) == 2 and "redis" in running(prod), signal.SIGINT),
    ]
    for when, number in steps:
        cut(prod, "restore", f"FILE={file}", "YES=1", when=when, number=number)
    prod.make("down")
    refused = prod.make("up", check=False)
    assert refused.returncode
    assert "was interrupted" in refused.stderr
    assert f"`make restore FILE={file} YES=1 ENV=prod` finishes it" in refused.stderr
    prod.make("restore", f"FILE={file}", "YES=1")
    assert running(prod) == ["redis", "worker", "worker"]
    assert is_done(prod, before)
    assert has_what_was_put(prod)
    assert prod.redis("exists", "app:mine") == "0"

    first = archives(prod, "prod-replaced-")[0]
    prod.run("docker", "kill", prod.container("redis"))
    prod.make("restore", f"FILE={first}", "YES=1")
    assert running(prod) == ["redis", "worker", "worker"], "Redis too, though it had ended"
    assert prod.redis("get", "app:mine") == "kept", "what was replaced can be brought back as well"


def test_a_restore_that_has_replaced_nothing_is_forgotten(prod: Stack, taken: tuple[Path, list[str]]) -> None:
    before = len(archives(prod, "prod-replaced-"))
    cut(
        prod,
        "restore",
        f"FILE={taken[0]}",
        "YES=1",
        when=lambda: last_entry(prod).get("outcome") == "begun" and "worker" not in running(prod),
        number=signal.SIGKILL,
    )
    assert "it was interrupted before it had replaced anything" in prod.make("up").stderr
    assert prod.redis("get", "app:mine") == "kept"
    assert len(archives(prod, "prod-replaced-")) == before


def test_a_backup_that_is_cut_short_leaves_no_half_archive(prod: Stack) -> None:
    apart = f"{prod.project}-redis-apart"

    def counts() -> bool:
        return subprocess.run(["docker", "inspect", apart], capture_output=True, check=False).returncode == 0

    partial = prod.folder / "backups"
    cut(prod, "backup", when=counts, number=signal.SIGKILL)
    cut(prod, "backup", when=lambda: list(partial.glob("*.partial")), number=signal.SIGKILL)
    assert not archives(prod, "prod-2")
    prod.make("backup")
    (made,) = archives(prod, "prod-2")
    assert made.stat().st_mode & 0o777 == 0o600
    assert not list(partial.glob("*.partial"))
    left = prod.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "ls", "redis", "/data").split()
    assert left == ["appendonlydir", "dump.rdb"]


def test_redis_on_another_image_and_back_under_load(dev: Stack, taken: tuple[Path, list[str]]) -> None:
    """Up, to another server, and down: each job is run once, those that ran as Redis stopped, too."""
    _, before = taken
    worker = dev.inspect("worker")["State"]["StartedAt"]
    with sending(dev, "meanwhile", 0.05) as sent:
        for image, version in (
            ("redis:8-alpine", "redis_version:8."),
            ("valkey/valkey:8-alpine", "valkey_version:8."),
            ("redis:7-alpine", "redis_version:7."),
        ):
            done = dev.make("upgrade-redis", f"IMAGE={image}")
            assert re.search(rf"Redis runs on {image}; jobs waited [\d.]+ s", done.stderr)
            assert version in dev.redis("info", "server")
            assert f"REDIS_IMAGE={image}" in dev.local_file.read_text()
    assert len(sent.ids) > 100
    assert is_done(dev, before + sent.ids)
    assert ends(dev, sent.ids) == {(True, 1)}
    assert int(dev.redis("zcard", "worker:dead:load_test")) == 0
    assert has_what_was_put(dev) or "1" not in keys(dev, "arq:job:deferred-"), "one has expired by now"
    assert dev.inspect("worker")["State"]["StartedAt"] == worker


def test_an_image_that_is_no_redis_changes_nothing(dev: Stack) -> None:
    before = started_at(dev)
    done = dev.make("upgrade-redis", "IMAGE=python:3.13-slim-trixie", check=False)
    assert done.returncode
    assert "Redis" in done.stderr
    assert started_at(dev) == before
    assert "IMAGE=: name the image" in dev.make("upgrade-redis", check=False).stderr


#: Does all that is asked of it beforehand, and then does not start.
BROKEN_SERVER = """\
#!/bin/sh
case "$*" in *"--port 0"*) exec "$0-whole" "$@" ;; esac
exit 1
"""


@pytest.fixture
def broken(dev: Stack) -> Iterator[str]:
    image = f"{dev.project}-redis:8"
    break_it = 'server=$(command -v redis-server); mv $server $server-whole; echo "$1" >$server; chmod 755 $server'
    command = ["docker", "run", "--name", dev.project, "--user", "0", "redis:8-alpine", "sh", "-c", break_it, "sh"]
    subprocess.run([*command, BROKEN_SERVER], check=True, capture_output=True)
    change = ["--change", 'CMD ["redis-server"]']
    subprocess.run(["docker", "commit", *change, dev.project, image], check=True, capture_output=True)
    yield image
    subprocess.run(["docker", "rm", "--volumes", dev.project], check=True, capture_output=True)
    subprocess.run(["docker", "rmi", "--force", image], check=True, capture_output=True)


def test_an_image_on_which_redis_does_not_start_is_given_up(dev: Stack, broken: str) -> None:
    dev.redis("set", "app:mine", "kept")
    before = dev.redis("info", "server")
    done = dev.make("upgrade-redis", f"IMAGE={broken}", check=False)
    assert done.returncode
    assert "Redis did not become healthy" in done.stderr
    assert "Redis runs on redis:7-alpine again, with what it had" in done.stderr
    assert dev.redis("info", "server").splitlines()[1] == before.splitlines()[1]
    assert dev.redis("get", "app:mine") == "kept"
    assert "REDIS_IMAGE=redis:7-alpine" in dev.local_file.read_text()
    assert running(dev) == ["redis", "worker"]


def test_an_upgrade_that_is_cut_short_is_finished_by_the_next(dev: Stack) -> None:
    dev.redis("set", "app:mine", "kept")
    for when in (
        lambda: last_entry(dev).get("outcome") == "begun" and "redis" not in running(dev),
        lambda: "REDIS_IMAGE=redis:8-alpine" in dev.local_file.read_text() and "redis" in running(dev),
    ):
        cut(dev, "upgrade-redis", "IMAGE=redis:8-alpine", when=when, number=signal.SIGKILL)
    dev.make("upgrade-redis", "IMAGE=redis:8-alpine")
    assert "redis_version:8." in dev.redis("info", "server")
    assert dev.redis("get", "app:mine") == "kept"
    assert running(dev) == ["redis", "worker"]


def test_dry_runs_print_commands_and_change_nothing(dev: Stack, taken: tuple[Path, list[str]]) -> None:
    before = started_at(dev), len(archives(dev, "dev-")), last_entry(dev)
    for command in (["backup"], ["restore", f"FILE={taken[0]}", "YES=1"], ["upgrade-redis", "IMAGE=redis:7-alpine"]):
        printed = dev.make(*command, "DRY_RUN=1").stdout
        assert "docker compose" in printed
        assert "redis/data.sh" in printed
    assert (started_at(dev), len(archives(dev, "dev-")), last_entry(dev)) == before


def test_an_archive_says_what_it_is_of(taken: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.unpack_archive(taken[0], tmp_path, filter="data")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["environment"], manifest["redis"]["image"]) == ("dev", "redis:7-alpine")
    assert (manifest["redis"]["server"], manifest["redis"]["rdb_version"]) == ("redis", "10")
    assert manifest["counts"]["0"]["dead"] == {"system": DEAD}
    secrets = [path for path in tmp_path.rglob("*") if "secret" in path.name or "password" in path.name]
    assert secrets == []
    assert (tmp_path / "config" / "env" / "dev.env").exists()
