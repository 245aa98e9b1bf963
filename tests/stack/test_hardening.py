"""What holds a container in, once it runs: section 5 of the CIS Docker Benchmark, of every service that prod can have.

What layers merge to, in every combination, is test_configurations.py's.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from testinfra.host import Host

from tests.stack.conftest import MakeStack, Stack
from tests.stack.test_queues import LAYERS, SERVICES


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Stack:
    """Every layer and a container for every service; `worker` stands aside for those of its queues, so it is added."""
    made = make_stack("prod", COMPOSE_FILE=LAYERS)
    made.make("up")
    made.compose("--profile", "all-queues", "up", "--detach", "--wait", "worker")
    return made


@pytest.fixture(params=["redis", "worker", *SERVICES])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def facts(stack: Stack, service: str) -> dict[str, Any]:
    return stack.inspect(service)


@pytest.fixture
def options(facts: dict[str, Any]) -> dict[str, Any]:
    host: dict[str, Any] = facts["HostConfig"]
    return host


@pytest.fixture
def inside(stack: Stack, service: str) -> Host:
    return stack.host(service)


def status(inside: Host, name: str) -> set[str]:
    """What /proc/<pid>/status says under a name, of all processes of the container."""
    return set(
        inside.check_output(f"sed -sn 's/^{name}:[[:space:]]*//p' /proc/[0-9]*/status 2>/dev/null; true").split()
    )


def test_no_process_is_root_or_can_become_it(facts: dict[str, Any], inside: Host) -> None:
    assert facts["Config"]["User"] in ("10001:10001", "999:1000")
    assert status(inside, "Uid") == {facts["Config"]["User"].split(":")[0]}
    assert status(inside, "NoNewPrivs") == {"1"}


def test_no_process_has_a_capability(options: dict[str, Any], inside: Host) -> None:
    assert (options["CapDrop"], options["CapAdd"], options["Privileged"]) == (["ALL"], None, False)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status(inside, kind) == {"0" * 16}, kind


def test_dockers_own_profiles_filter_what_it_asks_of_the_kernel(options: dict[str, Any], inside: Host) -> None:
    assert options["SecurityOpt"] == ["no-new-privileges:true"], "another entry would take the place of a default"
    assert status(inside, "Seccomp") == {"2"}


def test_it_shares_no_namespace_and_no_device(options: dict[str, Any], stack: Stack) -> None:
    for namespace in ("PidMode", "UTSMode", "UsernsMode"):
        assert options[namespace] == "", namespace
    assert options["IpcMode"] == "private"
    assert options["NetworkMode"] in (f"{stack.project}_internal", f"{stack.project}_egress")
    assert not options["Devices"]
    assert not options["DeviceCgroupRules"]
    assert not options["VolumesFrom"]
    assert not options["CgroupParent"]


def test_it_has_limits(options: dict[str, Any], inside: Host) -> None:
    assert options["Memory"] > 0
    assert options["MemorySwap"] == options["Memory"], "no swap"
    assert options["NanoCpus"] > 0
    assert options["PidsLimit"] == 512
    assert not options["OomKillDisable"]
    assert {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in options["Ulimits"]} == {
        "core": (0, 0),
        "nofile": (16384, 16384),
    }
    limits = inside.check_output("cat /proc/1/limits")
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert re.search(r"^Max open files +16384 +16384 ", limits, re.MULTILINE)


def test_it_is_watched_started_again_and_its_logs_are_kept_small(facts: dict[str, Any]) -> None:
    assert facts["HostConfig"]["Init"]
    assert facts["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert {"max-size", "max-file"} <= facts["HostConfig"]["LogConfig"]["Config"].keys()
    assert facts["State"]["Health"]["Status"] == "healthy"


def test_it_publishes_nothing(facts: dict[str, Any]) -> None:
    assert not facts["HostConfig"]["PortBindings"]
    assert not facts["HostConfig"]["PublishAllPorts"]
    assert not any(facts["NetworkSettings"]["Ports"].values())


def test_of_the_host_it_sees_configuration_alone(stack: Stack, facts: dict[str, Any]) -> None:
    allowed = (f"{stack.folder}/secrets/prod/", f"{stack.folder}/redis/redis.conf", "/dev/null")
    for mount in facts["Mounts"]:
        if mount["Type"] == "volume":
            assert mount["Name"] in (f"{stack.project}_redis-data", f"{stack.project}_worker-data")
            assert mount["Destination"] == "/data"
        else:
            assert mount["Source"].startswith(allowed)
            assert not mount["RW"]
            assert mount["Propagation"] not in ("shared", "rshared")


def test_it_writes_to_its_data_and_to_sized_memory_alone(facts: dict[str, Any], inside: Host) -> None:
    assert facts["HostConfig"]["ReadonlyRootfs"]
    mounts = {
        row[1]: set(row[3].split(",")) for row in map(str.split, inside.check_output("cat /proc/mounts").splitlines())
    }
    assert "ro" in mounts["/"]
    writable = inside.check_output(
        f'for p in {" ".join(mounts)}; do [ -d "$p" ] && [ -w "$p" ] && echo "$p"; done; true'
    )
    memory = {"/dev/shm", *(facts["HostConfig"].get("Tmpfs", {}))}
    assert set(writable.split()) == {"/data", "/dev/mqueue", *memory}
    for path in memory:
        assert {"noexec", "nosuid", "nodev", "size=65536k"} <= mounts[path], path
    for path in ("/x", "/etc/x", "/usr/bin/x", "/run/secrets/x"):
        assert inside.run(f"touch {path}").failed, path
    assert inside.run("touch /data/x && rm /data/x").succeeded
