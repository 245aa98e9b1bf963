"""Deployments and scaling under a steady load of 200 jobs a second: each job is done once, and none is late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from tests.stack import steady
from tests.stack.conftest import MakeStack, Stack, eventually, inspect

LATE_S = 2.0


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Stack:
    stack = make_stack(
        "prod",
        WORKER_QUEUES="load_test",
        WORKER_LOAD_TEST_MAX_JOBS="150",
        REDIS_MAX_CONNECTIONS="150",
        WORKER_MEMORY_LIMIT="512M",
        WORKER_MEMORY_RESERVATION="128M",
    )
    steady.edit_in(stack.folder)
    stack.make("up")
    return stack


def change_code(stack: Stack, text: str) -> None:
    """Make another version out of the checkout: the last line of a module is replaced."""
    module = stack.folder / "app/components/worker/tasks/recorded.py"
    module.write_text(f"{steady.TASK}\n{text}\n")


def versions(stack: Stack) -> list[str]:
    return sorted(inspect(worker)["Config"]["Image"].rpartition(":")[2] for worker in stack.replicas("worker"))


def journal(stack: Stack) -> list[dict[str, str]]:
    return [json.loads(line) for line in (stack.folder / ".local/prod.journal").read_text().splitlines()]


def is_clean(account: steady.Account) -> None:
    assert account.jobs > 1000
    assert (account.lost, account.refused, account.again) == (0, 0, 0), account
    assert account.latest < LATE_S, account


def test_three_deployments_a_bad_one_and_a_rollback_under_load(stack: Stack) -> None:
    redis = stack.container("redis")
    started = inspect(redis)["State"]["StartedAt"]
    with steady.load(stack) as account:
        for version in ("v1", "v2", "v3"):
            change_code(stack, f"VERSION = {version!r}")
            stack.make("deploy", f"VERSION={version}")
            assert versions(stack) == [version]
        before = stack.replicas("worker")
        change_code(stack, "raise RuntimeError('a bad version')")
        done = stack.make("deploy", "VERSION=bad", check=False)
        assert done.returncode
        assert "RuntimeError: a bad version" in done.stderr
        assert "bad is not deployed: " in done.stderr
        assert stack.replicas("worker") == before
        stack.make("rollback")
        assert versions(stack) == ["v2"]
    is_clean(account)
    assert inspect(redis)["State"]["StartedAt"] == started, "Redis is not the workers' business"
    told = [(entry["event"], entry["version"], entry.get("outcome")) for entry in journal(stack)]
    assert told[1:] == [("deploy", version, "done") for version in ("v1", "v2", "v3")] + [
        ("deploy", "bad", "failed"),
        ("rollback", "v2", "done"),
    ]
    listed = stack.make("releases").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["version", "v3", "v2", "v1", "dev"]
    assert "deployed now" in listed[2]


def test_what_is_deployed_stays_until_the_next_deployment(stack: Stack) -> None:
    before = stack.replicas("worker")
    change_code(stack, "raise RuntimeError('not deployed')")
    stack.make("up")
    assert stack.replicas("worker") == before
    assert "v2 is deployed, and a build would take its name" in stack.make("build", check=False).stderr


def test_a_version_that_failed_is_built_again(stack: Stack) -> None:
    change_code(stack, "VERSION = 'mended'")
    assert "building bad" in stack.make("deploy", "VERSION=bad").stderr
    assert versions(stack) == ["bad"]
    assert "bad is here already" in stack.make("deploy", "VERSION=bad").stderr


def test_a_version_that_is_not_there(stack: Stack) -> None:
    done = stack.make("rollback", "VERSION=nope", check=False)
    assert done.returncode
    assert f"{stack.project}:nope is neither here nor to be pulled" in done.stderr
    assert "VERSION=a/b: a version has letters" in stack.make("deploy", "VERSION=a/b", check=False).stderr


def test_hooks(stack: Stack) -> None:
    hooks, told = stack.folder / "ops" / "hooks", stack.folder / "told"
    before = stack.replicas("worker")
    hooks.mkdir()
    (pre := hooks / "pre-deploy").write_text("#!/bin/sh\nexit 3\n")
    (post := hooks / "post-deploy").write_text(
        "#!/bin/sh\necho $ENV $EVENT $VERSION $PREVIOUS_VERSION $OUTCOME > told\n"
    )
    for hook in (pre, post):
        hook.chmod(0o755)
    done = stack.make("deploy", "VERSION=v2", check=False)
    assert done.stderr.startswith("ops/hooks/pre-deploy ended with 3: nothing was changed")
    assert stack.replicas("worker") == before
    assert not told.exists()
    pre.unlink()
    stack.make("deploy", "VERSION=v3")
    assert told.read_text() == "prod deploy v3 bad done\n"
    post.unlink()


def test_a_version_that_only_the_registry_has(stack: Stack, registry: str) -> None:
    text, image = stack.local_file.read_text(), f"{registry}/app:elsewhere"
    for command in (["tag", f"{stack.project}:v3", image], ["push", "--quiet", image], ["image", "rm", image]):
        stack.run("docker", *command)
    stack.local_file.write_text(text.replace(f"APP_IMAGE={stack.project}", f"APP_IMAGE={registry}/app"))
    assert "pulling" in stack.make("deploy", "VERSION=elsewhere").stderr
    assert versions(stack) == ["elsewhere"]
    stack.local_file.write_text(text)
    stack.make("deploy", "VERSION=v3")
    stack.run("docker", "image", "rm", image)


def test_more_replicas_than_there_is_memory_for_are_refused(stack: Stack) -> None:
    before = stack.local_file.read_text()
    done = stack.make("scale", "N=1000", check=False)
    assert done.returncode
    assert "of memory, and the limits add up to 501.0 GiB (1 × redis 1.0 GiB, 1000 × worker 500.0 GiB)" in done.stderr
    assert "--scale worker=1000" in stack.make("scale", "N=1000", "FORCE=1", "DRY_RUN=1").stdout
    assert stack.local_file.read_text() == before


def state(stack: Stack) -> object:
    """All that a command could change: containers, networks, volumes, files."""
    label = f"label=com.docker.compose.project={stack.project}"
    listed = [stack.run("docker", kind, "ls", "--quiet", "--filter", label).stdout for kind in ("volume", "network")]
    containers = {each: inspect(each)["State"]["StartedAt"] for each in stack.containers("worker", "redis")}
    folders = [stack.folder / name for name in ("env", "secrets", ".local", "backups")]
    return listed, containers, {file: file.read_bytes() for top in folders for file in top.rglob("*") if file.is_file()}


CHANGES = (
    "up, down, restart, scale 3, autoscale 3 4, deploy, rollback, deploy-redis, backup, secrets-rotate, bundle, "
    "upgrade-redis valkey/valkey:8-alpine, certs --renew ca, destroy, digests"
)


@pytest.mark.parametrize("command", CHANGES.split(", "))
def test_a_dry_run_changes_nothing(stack: Stack, command: str) -> None:
    before = state(stack)
    argv = [
        "timeout",
        "--foreground",
        "--preserve-status",
        "--signal",
        "INT",
        "5",
        "python3",
        "-m",
        "ops",
        "--env",
        "prod",
        "--dry-run",
        *command.split(),
    ]
    done = stack.run(*argv)
    assert done.stdout
    assert state(stack) == before


def test_scaling_under_load(stack: Stack) -> None:
    with steady.load(stack) as account:
        stack.make("scale", "N=5")
        assert len(stack.replicas("worker")) == 5
        stack.make("scale", "N=1")
    assert len(stack.replicas("worker")) == 1
    is_clean(account)


def test_replicas_follow_the_load(stack: Stack) -> None:
    options = ["--target", "1", "--every", "1", "--steady", "4"]
    command = ["python3", "-m", "ops", "--env", "prod", "autoscale", "1", "3", *options]
    told = subprocess.Popen(
        command, cwd=stack.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        with steady.load(stack, rate=600) as account:
            eventually(lambda: len(stack.replicas("worker")) > 1, within_s=40)
        eventually(lambda: len(stack.replicas("worker")) == 1, within_s=60)
    finally:
        os.killpg(told.pid, signal.SIGINT)
        said = told.communicate(timeout=30)[1]
    assert (account.lost, account.again) == (0, 0), account
    assert told.returncode == 0, said
    assert "1 → 2 replicas: " in said
    assert said.rstrip().endswith("stopped: the replicas of worker stay as they are")


STEPS = {
    "while it builds": lambda stack: True,
    "when new replicas start": lambda stack: len(stack.replicas("worker")) > 1,
    "when old ones drain": lambda stack: "APP_VERSION=cut" in stack.local_file.read_text(),
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_cut_short_is_finished_by_the_next(stack: Stack, number: signal.Signals) -> None:
    with steady.load(stack) as account:
        for step, (name, reached) in enumerate(STEPS.items()):
            change_code(stack, f"VERSION = 'cut-{number}-{step}'")
            command = ["make", "--no-print-directory", "ENV=prod", "deploy", f"VERSION=cut-{number}-{step}"]
            deploy = subprocess.Popen(
                command, cwd=stack.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            while not reached(stack) and deploy.poll() is None:
                time.sleep(0.1)
            os.killpg(deploy.pid, number)
            deploy.communicate(timeout=60)
            assert stack.replicas("worker"), name
            stack.make("deploy", f"VERSION=whole-{number}-{step}")
            assert versions(stack) == [f"whole-{number}-{step}"], name
    is_clean(account)


def test_of_two_at_once_the_second_says_who_has_the_lock(stack: Stack) -> None:
    command = ["make", "--no-print-directory", "ENV=prod", "deploy"]
    first, second = (
        subprocess.Popen([*command, f"VERSION={name}"], cwd=stack.folder, stderr=subprocess.PIPE, text=True)
        for name in ("first", "second")
    )
    said = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sum("ENV=prod is being changed: deploy by " in text for text in said) == 1
    assert len(versions(stack)) == 1


def test_redis_is_deployed_by_itself(stack: Stack) -> None:
    worker = stack.replicas("worker")
    stack.local_file.write_text(stack.local_file.read_text() + "REDIS_MAXMEMORY=300mb\n")
    with steady.load(stack, rate=50) as account:
        said = stack.make("deploy-redis").stderr
    assert "jobs waited" in said
    assert account.lost == 0, account
    assert stack.redis("config", "get", "maxmemory").split()[-1] == str(300 << 20)
    assert stack.replicas("worker") == worker
