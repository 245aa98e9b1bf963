"""The Redis scripts of one queue, each as a method; what each does is at the head of its file in ``lua/``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from arq.utils import timestamp_ms
from redis.asyncio import Redis
from redis.exceptions import RedisError

from . import keys
from .retry import Backoff

#: What Redis answers, or does not, while it restarts, loads, fails over, cannot save, lacks replicas or is full: there
#: are more such answers than classes for them (MISCONF, NOREPLICAS, …), and to end would help with none.
UNAVAILABLE = (RedisError, OSError)
RECONNECT = Backoff(base=0.5, limit=5)

KEEP_TRIES_S = 88_400  #: as arq does: a little longer than a job's own day
MOST_DEAD = 10_000  #: dead letters that a queue keeps
#: arq rounds its clock to the millisecond, so that a job enqueued just now may be due half of one from now.
AHEAD_MS = 1

_LUA = Path(__file__).with_name("lua")


def cancelled() -> bool:
    """Whether the current task was asked to end: redis-py now and then reports a cancellation as a time-out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Claim(NamedTuple):
    """A job that was claimed."""

    job_id: str
    due_ms: int
    tries: int  #: this one included
    abort_ms: int | None  #: when its abort was asked for
    payload: bytes | None  #: None where it has expired


class Claims(NamedTuple):
    jobs: list[Claim]
    look_again_ms: int | None  #: when the next job falls due, or the next lease lapses
    blocked: bool  #: jobs are due that run elsewhere, or the queue is paused


class Settlement(NamedTuple):
    """How a claim ends, as ``settle.lua`` takes it."""

    job_id: str
    kind: str  #: end, dead or back
    data: bytes | int
    amount: int
    last: bytes | int | str


class Scripts:
    """Runs the scripts for one worker: its token marks the leases."""

    def __init__(self, redis: Redis, queue_name: str, token: str, lease_s: float) -> None:
        self._queue = queue_name
        self._token = token
        self._lease_ms = int(lease_s * 1000)
        self._claim, self._renew, self._settle = (
            redis.register_script(_LUA.joinpath(f"{name}.lua").read_bytes()) for name in ("claim", "renew", "settle")
        )

    async def claim(self, wanted: int) -> Claims:
        """Claim up to so many jobs."""
        look_again, blocked, *flat = await self._claim(
            keys=[self._queue, keys.paused(self._queue), keys.ABORT, keys.leases(self._queue)],
            args=[
                timestamp_ms() + AHEAD_MS,
                wanted,
                self._token,
                self._lease_ms,
                KEEP_TRIES_S,
                keys.IN_PROGRESS,
                keys.JOB,
                keys.RETRY,
            ],
        )
        fields = iter(flat)
        jobs = [
            Claim(job_id.decode(), int(float(due)), tries, int(float(abort)) if abort else None, payload)
            for job_id, due, tries, abort, payload in zip(fields, fields, fields, fields, fields, strict=True)
        ]
        return Claims(jobs, int(float(look_again)) if look_again else None, bool(blocked))

    async def renew(self, jobs: Iterable[tuple[str, int]]) -> list[str]:
        """Renew leases, given with the time in ms by which each job has ended; return the ids that are lost."""
        flat = [field for job in jobs for field in job]
        if not flat:
            return []
        lost = await self._renew(
            keys=[self._queue, keys.leases(self._queue)],
            args=[self._token, timestamp_ms(), self._lease_ms, keys.IN_PROGRESS, *flat],
        )
        return [job_id.decode() for job_id in lost]

    async def settle(self, batch: Sequence[Settlement]) -> list[int]:
        """End claims; return for each 1, or 0 where the lease was no longer ours."""
        flat = [field for settlement in batch for field in settlement]
        settled: list[int] = await self._settle(
            keys=[self._queue, keys.leases(self._queue), keys.ABORT, keys.dead(self._queue)],
            args=[
                self._token,
                timestamp_ms(),
                MOST_DEAD,
                keys.IN_PROGRESS,
                keys.JOB,
                keys.RETRY,
                keys.RESULT,
                *flat,
            ],
        )
        return settled
