"""Dead letters: jobs that ended without a success, each with its payload, error, traceback, tries and reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from arq.constants import expires_extra_ms
from arq.utils import timestamp_ms
from redis.asyncio import Redis

from . import keys
from .scripts import Script

BATCH = 500


async def ids(redis: Redis, queue_name: str, most: int = -1) -> list[str]:
    """Return the ids of a queue's dead letters, the latest first."""
    last = most - 1 if most > 0 else -1
    return [keys.job_id(raw_id) for raw_id in await redis.zrevrange(keys.dead(queue_name), 0, last)]


def _fields(job_ids: Sequence[str]) -> list[str]:
    return [field for job_id in job_ids for field in (f"letter:{job_id}", f"payload:{job_id}")]


async def read(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the letters of these ids, less those that are gone: ``id``, ``payload`` as bytes, and what
    ``execution.dead_letter`` has written."""
    if not job_ids:
        return []
    found = await redis.hmget(keys.letters(queue_name), _fields(job_ids))  # type: ignore[misc]
    return [
        {"id": job_id, **json.loads(letter), "payload": payload}
        for job_id, letter, payload in zip(job_ids, found[::2], found[1::2], strict=True)
        if letter is not None
    ]


async def revive(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> list[str]:
    """Queue jobs again, with all their tries; return the ids of those that could be.

    Left out are those whose payload had expired, and those whose id is in use again.
    """
    put_back = Script(redis.execute_command, "revive")
    revived: list[str] = []
    for first in range(0, len(job_ids), BATCH):
        done = await put_back(
            keys=[queue_name, keys.dead(queue_name), keys.letters(queue_name), keys.ABORT],
            args=[
                timestamp_ms(),
                expires_extra_ms,
                keys.JOB,
                keys.RETRY,
                keys.RESULT,
                keys.IN_PROGRESS,
                keys.RAISED,
                *job_ids[first : first + BATCH],
            ],
        )
        revived += map(keys.job_id, done)
    return revived


async def discard(redis: Redis, queue_name: str, job_ids: Sequence[str]) -> int:
    """Delete letters; return how many there were."""
    delete = Script(redis.execute_command, "discard")
    of_queue = [keys.dead(queue_name), keys.letters(queue_name)]
    return sum([await delete(of_queue, job_ids[first : first + BATCH]) for first in range(0, len(job_ids), BATCH)])
