"""A backup of a stack that runs: what Redis held at one moment, and what tells where it belongs.

Redis saves a snapshot. It stands still only while the kernel forks it. Another server of the same image then loads the
snapshot, so that the counts in the manifest are the archive's own, and it is known that the archive can be loaded.
"""

import argparse
import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

from ..config import ROOT, OpsError
from ..config.units import MIB
from ..engine import commands, services
from ..engine.stack import Stack, is_worker
from ..secrets import passwords
from . import archive, counts, volume
from .counts import Counts

POLL_S = 0.2
KEEP = 7

Manifest = dict[str, Any]


def backup(stack: Stack, options: argparse.Namespace) -> int:
    if not options.keep.isdecimal() or int(options.keep) < 1:
        raise OpsError(f"KEEP={options.keep}: a number of backups to keep is 1 or more")
    make(stack, int(options.keep))
    return 0


def make(stack: Stack, keep: int = KEEP) -> Path:
    """Write an archive, and remove the environment's older ones but for the latest. Return the archive's path."""
    began = time.monotonic()
    archive.need_encryption(stack)
    image = running_image(stack)
    apart = stack.with_variables(REDIS_IMAGE=image)
    volume.end_others(apart)
    at = time.time()
    stack.change("have Redis save a snapshot, and wait for it", partial(_snapshot, stack))
    rdb_version, found = volume.count_snapshot(apart)
    redis = {**redis_facts(stack), "image": image, "rdb_version": rdb_version}
    file = archive.path(stack, at)
    size = write(apart, file, {**manifest(stack, at, found), "redis": redis})
    for old in archive.past(stack.name)[keep:]:
        stack.change(f"remove {old.name}", old.unlink)
    stack.tell(
        f"{file.relative_to(ROOT)}: {counts.described(found or {})}, {size / MIB:.1f} MiB "
        f"({time.monotonic() - began:.1f} s; Redis stood still for {redis['fork_us'] / 1000:.1f} ms)"
    )
    stack.record("backup", file=file.name)
    return file


def write(stack: Stack, file: Path, facts: Manifest) -> int:
    """Write what was taken of Redis's data into an archive, and return its size."""

    def action() -> int:
        with volume.packed(stack) as taken:
            archive.write(stack, file, facts, taken, archive.configuration_of(stack))
        return file.stat().st_size

    try:
        return stack.change(f"write {file.relative_to(ROOT)}", action) or 0
    except OSError as error:
        raise OpsError(f"{file.relative_to(ROOT)} cannot be written: {error.strerror}") from None


def manifest(stack: Stack, at: float, found: Counts | None) -> Manifest:
    """Return what an archive says of itself. ``found`` is None if its data could not be loaded."""
    images = {service["image"] for name, service in stack.model()["services"].items() if is_worker(name)}
    ids = {image: stack.ask(["docker", "image", "inspect", "--format", "{{.Id}}", image]).stdout for image in images}
    return {
        "format": archive.FORMAT,
        "environment": stack.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
        "snapshot_ms": int(at * 1000),
        "database": stack.environment.values["REDIS_DB"],
        "counts": found,
        "app": {"version": stack.version, "images": {image: id_.strip() for image, id_ in ids.items()}},
        "payloads": payloads(stack),
    }


def payloads(stack: Stack) -> dict[str, Any]:
    """Return what a worker has to know to read jobs: their format, and fingerprints of the keys that sign them."""
    file = stack.environment.secrets / passwords.SIGNING_KEY
    keys = file.read_text().split() if file.exists() else []
    return {
        "serializer": stack.environment.values["WORKER_SERIALIZER"],
        "signing_keys": [hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys],
    }


def running_image(stack: Stack) -> str:
    """Return the image of the Redis that runs. If REDIS_IMAGE was changed since, that is another one."""
    redis = services.running_redis(stack)
    return stack.output(["docker", "inspect", "--format", "{{.Config.Image}}", redis.id]).strip()


def redis_facts(stack: Stack) -> dict[str, Any]:
    """Return what the Redis that runs says of itself."""
    server = _info(stack, "server")
    name = server.get("server_name", "redis")
    return {
        "server": name,
        "version": server[f"{name}_version"],
        "fork_us": int(_info(stack, "stats")["latest_fork_usec"]),
        "persistence": _info(stack, "persistence"),
    }


def _snapshot(stack: Stack) -> None:
    """Save what Redis holds now. A snapshot that it is saving already may lack what came in since."""
    bgsave = commands.redis_cli(stack.environment, ["BGSAVE"], terminal=False)
    while "started" not in (reply := stack.ask(bgsave).stdout):
        state = _info(stack, "persistence")
        if "1" not in (state["rdb_bgsave_in_progress"], state["aof_rewrite_in_progress"]):
            raise OpsError(f"Redis does not save a snapshot: {reply.strip()}")
        time.sleep(POLL_S)
    while (state := _info(stack, "persistence"))["rdb_bgsave_in_progress"] == "1":
        time.sleep(POLL_S)
    if state["rdb_last_bgsave_status"] != "ok":
        raise OpsError(f"Redis could not save a snapshot: `make logs ARGS=redis ENV={stack.name}` shows why")


def _info(stack: Stack, section: str) -> dict[str, str]:
    printed = stack.output(commands.redis_cli(stack.environment, ["INFO", section], terminal=False))
    return dict(line.strip().split(":", 1) for line in printed.splitlines() if ":" in line)
