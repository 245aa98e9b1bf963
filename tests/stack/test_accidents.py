"""What happens to a whole machine: power cuts and a full disk, under load."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.stack import steady
from tests.stack.conftest import MakeStack, Stack, eventually

LAYERS = "compose/base.yml:compose/prod.yml:compose/secure-network.yml:compose/tls.yml"
SMALL_DISK = """\
volumes:
  redis-data:
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=64m,uid=999,gid=1000"}
"""


def make(make_stack: MakeStack, **changes: str) -> Stack:
    stack = make_stack("prod", WORKER_QUEUES="load_test", WORKER_LOAD_TEST_MAX_JOBS="90", **changes)
    steady.edit_in(stack.folder)
    return stack


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_power_cut_loses_nothing_that_was_acknowledged(make_stack: MakeStack, fsync: str) -> None:
    """The kernel lives on, so that what Redis had written is there whether or not it was synced.

    With ``everysec`` its writes may lag behind its answers by two seconds while the disk is slow, so wait for them.
    """
    stack = make(make_stack, REDIS_APPENDFSYNC=fsync)
    stack.make("up")
    before = stack.inspect("redis")["State"]["StartedAt"]
    with steady.load(stack, rate=100) as account:
        time.sleep(2)
        if fsync == "everysec":
            stack.redis("client", "pause", "60000", "write")
            eventually(lambda: "aof_buffer_length:0" in stack.redis("info", "persistence"))
        stack.run("docker", "kill", *stack.replicas("redis"), *stack.replicas("worker"))
        stack.make("up")
        time.sleep(1)
    # Enqueues need not have been refused meanwhile: redis-py connects again for some seconds.
    assert stack.inspect("redis")["State"]["StartedAt"] != before
    assert account.jobs > 200
    assert account.lost == 0, account


def test_a_full_disk_stops_writes_and_loses_nothing(make_stack: MakeStack) -> None:
    stack = make(make_stack, COMPOSE_FILE=f"{LAYERS}:compose/small-disk.yml")
    (stack.folder / "compose" / "small-disk.yml").write_text(SMALL_DISK)
    stack.make("up")
    redis = stack.container("redis")
    with steady.load(stack, rate=100) as account:
        subprocess.run(["docker", "exec", redis, "sh", "-c", "cat /dev/zero > /data/fill"], capture_output=True)
        eventually(lambda: "aof_last_write_status:err" in stack.redis("info", "persistence"))
        time.sleep(2)
        subprocess.run(["docker", "exec", redis, "rm", "/data/fill"], check=True)
        eventually(lambda: "aof_last_write_status:ok" in stack.redis("info", "persistence"))
        time.sleep(1)
    assert account.refused, "Redis takes nothing that it cannot write"
    assert account.lost == 0, account
