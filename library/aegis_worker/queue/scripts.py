"""The Redis scripts of one queue, each as a method; what each does is at the head of its file in ``lua/``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from hashlib import sha1
from itertools import groupby, repeat
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from redis.exceptions import NoScriptError, RedisError

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff, RateLimit
from aegis_worker.queue.settlement import Completed, Died, Lease, Reply, Retried, Returned, Settlement

logger = logging.getLogger(__name__)

#: What Redis answers, or does not, while it restarts, loads, fails over, cannot save, lacks replicas or is full: there
#: are more such answers than classes for them (MISCONF, NOREPLICAS, …), and to end would help with none.
UNAVAILABLE = (RedisError, OSError)
RECONNECT = Backoff(base=0.5, limit=5)

RENEWALS_PER_LEASE = 3
RENEWAL_TICK_S = 0.25  #: of the thread that renews: so much later than it should it may be

KEEP_TRIES_S = 88_400  #: as arq does: a little longer than a job's own day
KEEP_FENCE_S = 3600  #: more than any socket keeps a command back
MOST_KEPT_MS = 1 << 47  #: some thousand years: Redis refuses what it cannot count, in the middle of a batch
MOST_TRIES = 1 << 31  #: that are taken for a count of tries
LATEST_MS = 1 << 47  #: a day in the year 6429: Python has no later ones than 9999
UNREAD_FUNCTION = "<unknown>"  #: in the result of a job whose payload had expired or could not be read
MOST_DEAD = 10_000  #: dead letters that a queue keeps
MOST_DEAD_BYTES = 32 << 20  #: of them; Redis has 256 MB for all queues by default

_LUA = Path(__file__).with_name("lua")

Call = Callable[..., Awaitable[Any]]  #: runs a command: a wire's ``call``, a client's ``execute_command``


@cache
def _source(name: str) -> tuple[bytes, str]:
    source = _LUA.joinpath(f"{name}.lua").read_bytes()
    return source, sha1(source, usedforsecurity=False).hexdigest()


class Script:
    """One of the scripts in ``lua/``."""

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._source, self._sha = _source(name)

    async def __call__(self, keys: Sequence[Any], args: Iterable[Any], call: Call | None = None) -> Any:
        try:
            return await (call or self._call)("EVALSHA", self._sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._call("EVAL", self._source, len(keys), *keys, *args)


def cancelled() -> bool:
    """Whether the current task was asked to end: redis-py now and then reports a cancellation as a time-out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Claim(NamedTuple):
    """A job that was claimed."""

    lease: Lease
    due_ms: int
    tries: int  #: this one included
    lapsed: bool  #: its last lease has, so that a try of it may still go on
    abort_ms: float | None  #: when its abort was asked for
    payload: bytes | None  #: None where it has expired


class Claims(NamedTuple):
    jobs: list[Claim]
    wait_s: float | None  #: until the next job falls due, the next lease lapses or the rate limit allows for more
    blocked: bool  #: jobs may be due that cannot be had now
    limited: bool  #: by the rate


def tries_over(count: bytes | None) -> int:
    """Return the tries that are over, by the key that counts them: it may be anybody's."""
    try:
        return min(int(count or 0), MOST_TRIES)
    except ValueError:
        return 0


def _flat(leases: Iterable[Lease]) -> list[str]:
    return [part for lease in leases for part in (lease.job_id, lease.token)]


def _group(end: Settlement) -> tuple[Any, ...]:
    """Return what those have in common that ``settle.lua`` is told of at once."""
    token, tried = end.lease.token, end.lease.tried
    match end:
        case Completed():
            return token, tried, "end", end.keep_ms or 0, end.mark_ms, b""
        case Died():
            return token, tried, "dead", end.keep_ms or 0, end.letter, end.payload
        case Retried():
            return token, tried, "again", end.tries, end.raised, b""
        case Returned():
            return token, tried, "back", 0, "", b""


def _data(end: Settlement) -> bytes | int:
    match end:
        case Retried():
            return end.wait_ms
        case Returned():
            return end.due_ms
        case _:
            return end.result


class Scripts:
    """Runs the scripts for one worker.

    :param lease_s: seconds until a lease lapses that is not renewed
    :param ends_s: seconds in which a job has ended for certain
    :param global_concurrency: jobs of the queue that run at a time, over all replicas; 0 for any number
    """

    def __init__(
        self,
        call: Call,
        queue_name: str,
        *,
        lease_s: float,
        ends_s: float,
        rate_limit: RateLimit | None = None,
        global_concurrency: int = 0,
    ) -> None:
        self._queue = queue_name
        self._lease_ms = int(lease_s * 1000)
        self._name = uuid4().hex[:16]
        self._claims = 0
        self._claim_keys = (
            queue_name,
            keys.paused(queue_name),
            keys.ABORT,
            keys.leases(queue_name),
            keys.fence(self._name),
            keys.begun(queue_name),
            keys.bell(queue_name),
            keys.seen(queue_name),
        )
        limits = (rate_limit.jobs, int(rate_limit.seconds * 1000)) if rate_limit else (0, 0)
        times = (self._lease_ms, int(ends_s * 1000), KEEP_TRIES_S)
        prefixes = keys.IN_PROGRESS, keys.JOB, keys.RETRY
        # While all is well, somebody claims or renews so often that leases lapse no sooner after the last of it. After
        # an outage, whoever holds leases renews them within a try that times out, the pause after it and the next one.
        between_ms = self._lease_ms / RENEWALS_PER_LEASE
        lapse_after_ms = max(self._lease_ms - between_ms - RENEWAL_TICK_S * 1000, self._lease_ms / 2)
        self._outage_args = (int(lapse_after_ms), int(between_ms / 2 + 1000))
        self._claim_args = (*times, global_concurrency, *limits, *prefixes, *self._outage_args)
        self._claim, self._rename, self._renew, self._recall, self._settle = (
            Script(call, name) for name in ("claim", "rename", "renew", "recall", "settle")
        )

    async def claim(self, wanted: int, wait: Call | None = None) -> Claims:
        """Claim up to so many jobs; with ``wait``, which runs a command some time, they count as tried once renewed."""
        self._claims += 1
        token = f"{self._name}:{self._claims}"
        wait_ms, blocked, limited, lapsed, *of_jobs = await self._claim(
            self._claim_keys, (wanted, token, self._claims, *self._claim_args, int(wait is not None)), wait
        )
        jobs = []
        ids, due_at, payloads, tries, aborts = of_jobs
        of_each = zip(ids, due_at, payloads, tries or repeat(None), aborts or repeat(None), strict=False)
        for n, (raw_id, due, payload, over, abort) in enumerate(of_each):
            try:
                job_id = raw_id.decode()
            except UnicodeDecodeError:
                job_id = await self._readable(raw_id, token)
            asked = float(abort) if abort else None
            lease = Lease(job_id, token, bool(tries))
            jobs.append(Claim(lease, int(float(due)), tries_over(over) + 1, n < lapsed, asked, payload))
        return Claims(jobs, None if wait_ms is None else wait_ms / 1000, bool(blocked), bool(limited))

    async def _readable(self, raw_id: bytes, token: str) -> str:
        """Give a job that we claimed, and whose id is not UTF-8, one that is; return it."""
        renamed = await self._rename(
            keys=[self._queue, keys.leases(self._queue)],
            args=[raw_id, keys.job_id(raw_id), token, self._lease_ms, keys.IN_PROGRESS, keys.JOB, keys.RETRY],
        )
        job_id = str(renamed, "utf-8")
        logger.warning("job id %r is not UTF-8: the job goes on as %s", raw_id, job_id)
        return job_id

    async def renew(self, leases: Iterable[Lease]) -> list[Lease]:
        """Renew leases; return copies of those that are lost."""
        leases = list(leases)
        if not leases:
            return []
        for lease in leases:
            lease.tried = True  # by others, where it had lapsed, and they are gone
        lost = await self._renew(
            keys=[self._queue, keys.leases(self._queue), keys.seen(self._queue)],
            args=[self._lease_ms, *self._outage_args, keys.IN_PROGRESS, *_flat(leases)],
        )
        return [Lease(keys.job_id(raw_id), token.decode()) for raw_id, token in lost]

    async def recall(self, known: Iterable[Lease]) -> int:
        """Give back the claims whose reply was lost, which are all but those of these leases; return how many."""
        recalled: int = await self._recall(
            keys=[self._queue, keys.leases(self._queue), keys.fence(self._name)],
            args=[self._claims + 1, KEEP_FENCE_S, f"{self._name}:", keys.IN_PROGRESS, *_flat(known)],
        )
        return recalled

    async def settle(self, batch: Sequence[Settlement]) -> list[int]:
        """End claims; return a ``Reply`` for each."""
        flat = [part for end in batch for part in (end.lease.job_id, _data(end))]
        for (token, tried, kind, amount, last, payload), alike in groupby(batch, _group):
            flat += (token, int(tried), kind, amount, last, len(list(alike)))
            if kind == "dead":
                flat.append(payload)
        limits = MOST_DEAD, MOST_DEAD_BYTES, KEEP_TRIES_S
        prefixes = keys.IN_PROGRESS, keys.JOB, keys.RETRY, keys.RESULT, keys.RAISED
        settled: list[int] = await self._settle(
            keys=[self._queue, keys.leases(self._queue), keys.ABORT, keys.dead(self._queue), keys.letters(self._queue)],
            args=[*limits, *prefixes, len(batch), *flat],
        )
        return settled or [Reply.DONE] * len(batch)
