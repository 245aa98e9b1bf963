"""Upkeep of a deployment: its state, its temporary files, what it depends on."""

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

CHECK_WITHIN_S = 60  #: redirects included, however slowly each answers


def peak_rss() -> int:
    """Return the most memory, in bytes, that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def system_health_check(ctx: dict[str, Any]) -> dict[str, Any]:
    """Return facts of the host, this process and Redis; raises ``RedisError`` where Redis does not answer.

    Sizes are in bytes, ``load`` is the average over 1, 5 and 15 minutes. It is for people to read: the health of
    a replica is what its worker records in Redis by itself.
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
    """Delete what has lain unchanged in the folder ``tmp`` for more than ``max_age_s`` seconds.

    A link goes by its own age, and what it leads to stays; a folder goes once it is empty, and one emptied just now
    counts as changed. Returns how many entries were ``deleted`` and ``kept``, and the ``bytes`` of deleted files.
    Raises ``ValueError`` for a negative age.
    """
    if not max_age_s >= 0:
        raise ValueError(f"max_age_s={max_age_s} must be 0 or more")
    return await asyncio.to_thread(_delete_older, time.time() - max_age_s)


def _delete_older(limit: float) -> dict[str, int]:
    counts = {"deleted": 0, "bytes": 0, "kept": 0}
    # Names are looked up in the open folder, so that a folder swapped for a link meanwhile leads nowhere else.
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
                continue  # its job, or another cleanup, was faster
            except OSError as error:
                counts["kept"] += 1
                if error.errno != errno.ENOTEMPTY:
                    logger.warning("cannot delete %s in %s: %s", name, path, error)
    return counts


async def check_url(ctx: dict[str, Any], url: str, expect: int = 200) -> dict[str, Any]:
    """GET a URL and return its ``status`` and the ``seconds`` until it came, redirects included.

    Raises ``RuntimeError``, which names both, where there is no answer or another one than ``expect``, so that the
    job is tried again; ``ValueError`` where the URL is not one of http or https, or leads, by a redirect too, to an
    address that is not public, unless ``WORKER_CHECK_URL_PRIVATE`` allows it.
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
            # Streamed, since nobody reads the body, which may have no end.
            response = await stack.enter_async_context(http.stream("GET", target))
            status: int = response.status_code
    except (httpx.HTTPError, TimeoutError) as error:
        raise RuntimeError(f"{target!r} does not answer: {error!r}") from error
    if status != expect:
        raise RuntimeError(f"{target!r} answers {status}, not {expect}")
    return {"status": status, "seconds": round(time.perf_counter() - started, 3)}
