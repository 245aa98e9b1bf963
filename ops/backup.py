"""A backup of a stack that runs: what Redis held at one moment, with all that tells where it belongs.

Redis saves a snapshot, for which it stands still only as long as the kernel takes to fork it. The snapshot is loaded
by a server of the same image, apart, so that the counts in the manifest are its own, and it is known to load.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

from . import archive, commands, counts, data, lifecycle, secrets
from .configuration import ROOT, ConfigurationError
from .counts import Counts
from .stack import Stack, is_worker, say

LOOK_S = 0.2
KEEP = 7

Manifest = dict[str, Any]


def backup(stack: Stack, options: argparse.Namespace) -> int:
    if not options.keep.isdecimal() or int(options.keep) < 1:
        raise ConfigurationError(f"KEEP={options.keep}: a number of backups to keep is 1 or more")
    make(stack, int(options.keep))
    return 0


def make(stack: Stack, keep: int = KEEP) -> tuple[Path, Counts]:
    """Write an archive, and remove the environment's own but for the latest; return its path and its counts."""
    began = time.monotonic()
    archive.need_encryption(stack)
    image = running_image(stack)
    apart = stack.given(REDIS_IMAGE=image)
    data.end_others(apart)
    at = time.time()
    _snapshot(stack)
    rdb_version, found = data.count_snapshot(apart)
    facts = {"redis": {**redis_facts(stack), "image": image, "rdb_version": rdb_version}}
    file = write(apart, archive.path(stack, at), {**manifest(stack, at, found), **facts})
    for old in archive.past(stack.name)[keep:]:
        stack.change(f"remove {old.name}", old.unlink)
    if not stack.dry_run:
        say(
            f"{file.relative_to(ROOT)}: {counts.said(found)}, {file.stat().st_size / 1024**2:.1f} MiB "
            f"({time.monotonic() - began:.1f} s; Redis stood still for {facts['redis']['fork_us'] / 1000:.1f} ms)"
        )
    lifecycle.record(stack, "backup", file=file.name)
    return file, found


def write(stack: Stack, file: Path, facts: Manifest) -> Path:
    """Write what was taken of Redis's data into an archive; return its path."""

    def written() -> None:
        with data.packed(stack) as taken:
            archive.write(stack, file, facts, taken, archive.configuration_of(stack))

    try:
        stack.change(f"write {file.relative_to(ROOT)}", written)
    except OSError as error:
        raise ConfigurationError(f"{file.relative_to(ROOT)} cannot be written: {error.strerror}") from None
    return file


def manifest(stack: Stack, at: float, found: Counts | None) -> Manifest:
    """Return what an archive says of itself; ``found`` is None where its data could not be loaded."""
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
    file = stack.environment.secrets / secrets.SIGNING_KEY
    keys = file.read_text().split() if file.exists() else []
    return {
        "serializer": stack.environment.values["WORKER_SERIALIZER"],
        "signing_keys": [hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys],
    }


def running_image(stack: Stack) -> str:
    """Return the image of the Redis that runs, which is another than REDIS_IMAGE where that was changed since."""
    found = [container.id for container in stack.containers() if container.service == "redis" and container.runs]
    if not found:
        raise ConfigurationError(f"Redis does not run in ENV={stack.name}: `make up ENV={stack.name}`")
    return stack.output(["docker", "inspect", "--format", "{{.Config.Image}}", found[0]]).strip()


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
    """Have Redis save what it holds now, and wait for it; one that it saves already may lack what came in since."""
    bgsave = commands.redis_cli(stack.environment, ["BGSAVE"], terminal=False)
    if stack.dry_run:
        stack.run(bgsave)
        return
    while "started" not in (reply := stack.ask(bgsave).stdout):
        state = _info(stack, "persistence")
        if "1" not in (state["rdb_bgsave_in_progress"], state["aof_rewrite_in_progress"]):
            raise ConfigurationError(f"Redis does not save a snapshot: {reply.strip()}")
        time.sleep(LOOK_S)
    while (state := _info(stack, "persistence"))["rdb_bgsave_in_progress"] == "1":
        time.sleep(LOOK_S)
    if state["rdb_last_bgsave_status"] != "ok":
        raise ConfigurationError(f"Redis could not save a snapshot: `make logs ARGS=redis ENV={stack.name}` shows why")


def _info(stack: Stack, section: str) -> dict[str, str]:
    printed = stack.output(commands.redis_cli(stack.environment, ["INFO", section], terminal=False))
    return dict(line.strip().split(":", 1) for line in printed.splitlines() if ":" in line)
