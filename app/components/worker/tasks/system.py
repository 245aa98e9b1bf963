"""Maintenance of a deployment: its state, its temporary files, and the services that it needs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import shutil
import socket
import stat
import sys
import time
from typing import Any

import httpx

from app.components.worker.tasks import files, web
from app.core.config import settings

logger = logging.getLogger(__name__)

CHECK_WITHIN_S = 60  #: for the request and all its redirects


def peak_rss() -> int:
    """Return the peak of this process's resident memory, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def system_health_check(ctx: dict[str, Any]) -> dict[str, Any]:
    """Return facts about the host, this process and Redis, for people. Raises ``RedisError`` if Redis does not answer.

    Sizes are in bytes. ``load`` is the average over 1, 5 and 15 minutes. The health of a replica does not depend on
    this task: each worker writes its own health record.
    """
    redis = ctx["redis"]
    disk = await asyncio.to_thread(lambda: shutil.disk_usage(files.root()))
    started = time.perf_counter()
    await redis.ping()
    ping_s = time.perf_counter() - started
    info = await redis.info()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "load": list(os.getloadavg()),
        "peak_rss": peak_rss(),
        "disk_free": disk.free,
        "redis_ping_ms": round(ping_s * 1000, 3),
        "redis_version": info["redis_version"],
        "redis_used_memory": info["used_memory"],
    }


async def cleanup_temp_files(ctx: dict[str, Any], max_age_s: float = 86_400) -> dict[str, int]:
    """Delete the files in the folder ``tmp`` that have not changed for more than ``max_age_s`` seconds.

    For a link, its own age counts, and its target is kept. A folder is deleted when it is empty and has not changed for
    so long. Returns how many entries were ``deleted`` and ``kept``, and the ``bytes`` of the deleted files. Raises
    ``ValueError`` if ``max_age_s`` is negative.
    """
    if not max_age_s >= 0:
        raise ValueError(f"max_age_s={max_age_s} must be 0 or more")
    return await asyncio.to_thread(_delete_older, time.time() - max_age_s)


def _delete_older(limit: float) -> dict[str, int]:
    counts = {"deleted": 0, "bytes": 0, "kept": 0}
    # Names are resolved in the open folder, so that nothing elsewhere is deleted if a link replaces a folder meanwhile.
    for path, folders, names, fd in os.fwalk(files.tmp(), topdown=False):
        for name in (*folders, *names):
            try:
                entry = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if entry.st_mtime >= limit:
                    counts["kept"] += 1
                elif stat.S_ISDIR(entry.st_mode):
                    os.rmdir(name, dir_fd=fd)
                    counts["deleted"] += 1
                else:
                    os.unlink(name, dir_fd=fd)
                    counts["deleted"] += 1
                    counts["bytes"] += entry.st_size
            except FileNotFoundError:
                continue  # a job, or another cleanup, has deleted it meanwhile
            except OSError as error:
                counts["kept"] += 1
                if error.errno != errno.ENOTEMPTY:
                    logger.warning("cannot delete %s in %s: %s", name, path, error)
    return counts


async def check_url(ctx: dict[str, Any], url: str, expect: int = 200) -> dict[str, Any]:
    """GET a URL, and return its ``status`` and the ``seconds`` until the status came, redirects included.

    Raises ``RuntimeError`` if there is no answer, or another status than ``expect``. Then the job is tried again.
    Raises ``ValueError`` if the URL is not valid, or not http or https, or if its address, or that of a redirect, is
    not public. ``WORKER_CHECK_URL_PRIVATE`` allows such addresses.
    """
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url is not valid: {error}") from error
    # A password is hidden in the URL's repr.
    if target.scheme not in ("http", "https") or not target.host:
        raise ValueError(f"{target!r} must begin with http:// or https:// and a host")
    if target.port is not None and not 0 < target.port < 65_536:
        raise ValueError(f"{target!r} must have a port from 1 to 65535")
    started = time.perf_counter()
    try:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(CHECK_WITHIN_S):
            http = ctx["http"] if settings.WORKER_CHECK_URL_PRIVATE else await stack.enter_async_context(web.client())
            # Streamed, because nobody reads the body, and it may have no end.
            response = await stack.enter_async_context(http.stream("GET", target))
            status: int = response.status_code
    except (httpx.HTTPError, TimeoutError) as error:
        raise RuntimeError(f"{target!r} does not answer: {error!r}") from error
    if status != expect:
        raise RuntimeError(f"{target!r} answers {status}, not {expect}")
    return {"status": status, "seconds": round(time.perf_counter() - started, 3)}
