"""The Redis scripts of one queue, each as a method; what each does is at the head of its file in ``lua/``.

The text of a script is composed when it is first used. Two kinds of lines in it are replaced: ``-- include: clock``
by the text of ``lua/lib/clock.lua``, which several scripts share, and ``-- keys: JOB, RETRY`` by locals of these names,
which have the values of the constants in ``keys.py``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from hashlib import sha1
from itertools import groupby, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from redis.exceptions import NoScriptError, RedisError

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff, RateLimit
from aegis_worker.queue.settlement import Completed, Died, Lease, Reply, Retried, Returned, Settlement

logger = logging.getLogger(__name__)

#: The errors of a Redis that restarts, loads, fails over, cannot save, lacks replicas or is full. There are more than
#: redis-py has classes for (MISCONF, NOREPLICAS, …). A worker tries again after each, as its end would not help.
UNAVAILABLE = (RedisError, OSError)
RECONNECT = Backoff(base=0.5, limit=5)

RENEWALS_PER_LEASE = 3
RENEWAL_TICK_S = 0.25  #: of the thread that renews: a renewal may be late by so much

KEEP_TRIES_S = 88_400  #: as arq does: a little longer than a job's own day
KEEP_FENCE_S = 3600  #: longer than any socket delays a command
MOST_KEPT_MS = 1 << 47  #: some thousand years: Redis refuses a number that is too large, in the middle of a batch
MOST_TRIES = 1 << 31  #: a larger count of tries counts as this one
LATEST_MS = 1 << 47  #: a day in the year 6429: Python knows no day after the year 9999
UNREAD_FUNCTION = "<unknown>"  #: in the result of a job whose payload had expired or could not be read
MOST_DEAD = 10_000  #: dead letters that a queue keeps
MOST_DEAD_BYTES = 32 << 20  #: of them; Redis has 256 MB for all queues by default

LUA = Path(__file__).with_name("lua")
_COMPOSED = re.compile(r"^ *-- (include|keys): (.+)\n", re.MULTILINE)

Call = Callable[..., Awaitable[Any]]  #: runs a command: a wire's ``call``, a client's ``execute_command``


@cache
def compose(name: str) -> str:
    """Return the text of a script as Redis gets it."""

    def composed(line: re.Match[str]) -> str:
        names = line[2].split(", ")
        if line[1] == "include":
            return "".join(compose(f"lib/{name}") for name in names)
        return f"local {line[2]} = {', '.join(repr(getattr(keys, name)) for name in names)}\n"

    return _COMPOSED.sub(composed, LUA.joinpath(f"{name}.lua").read_text())


class Script:
    """One of the scripts in ``lua/``."""

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._source = compose(name)
        self._sha = sha1(self._source.encode(), usedforsecurity=False).hexdigest()

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
    lapsed: bool  #: its last lease has lapsed, so that a try of it may still go on
    abort_ms: float | None  #: when its abort was asked for
    payload: bytes | None  #: None where it has expired


class Claims(NamedTuple):
    jobs: list[Claim]
    wait_s: float | None  #: until the next job is due, the next lease lapses or the rate limit allows for more
    blocked: bool  #: jobs may be due that cannot be claimed now
    limited: bool  #: the rate limit keeps jobs back


def finished_tries(count: bytes | None) -> int:
    """Return how many tries have ended, by the value of the key that counts them, which any client may have written."""
    try:
        return min(int(count or 0), MOST_TRIES)
    except ValueError:
        return 0


def _flat(leases: Iterable[Lease]) -> list[str]:
    """Return the id and the token of each lease, one after the other."""
    return [part for lease in leases for part in (lease.job_id, lease.token)]


class Kind:
    """How ``settle.lua`` takes settlements of one type.

    :param name: what the script calls the type
    :param shared: fields that all settlements of a group have in common, in the order in which the script reads them
    :param own: the field that each settlement has for itself
    """

    def __init__(self, name: str, shared: tuple[str, ...], own: str) -> None:
        self.name = name
        self.shared = shared
        self.own = own
        self.read_shared: Callable[[Settlement], tuple[Any, ...]] = attrgetter("lease.token", "lease.tried", *shared)
        self.read_own: Callable[[Settlement], bytes | int] = attrgetter(own)


KINDS: dict[type[Settlement], Kind] = {
    Completed: Kind("completed", shared=("keep_ms", "mark_ms"), own="result"),
    Died: Kind("died", shared=("keep_ms", "letter", "payload"), own="result"),
    Retried: Kind("retried", shared=("tries", "raised"), own="wait_ms"),
    Returned: Kind("returned", shared=(), own="due_ms"),
}


def _group(end: Settlement) -> tuple[Kind, tuple[Any, ...]]:
    """Return what is equal for settlements in a row that make one group."""
    kind = KINDS[type(end)]
    return kind, kind.read_shared(end)


class Scripts:
    """Runs the scripts for one worker.

    :param lease_s: seconds until a lease lapses that is not renewed
    :param ends_s: seconds after which a job has ended for certain
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
            keys.rate_window(queue_name),
            keys.bell(queue_name),
            keys.last_active(queue_name),
        )
        limits = (rate_limit.jobs, int(rate_limit.seconds * 1000)) if rate_limit else (0, 0)
        times = (self._lease_ms, int(ends_s * 1000), KEEP_TRIES_S)
        # Workers claim or renew so often that without an outage no lease lapses within the first of these times after
        # the last claim or renewal. After an outage a worker renews its leases within the second one: an attempt that
        # times out, the pause after it and the next attempt.
        between_ms = self._lease_ms / RENEWALS_PER_LEASE
        lapse_after_ms = max(self._lease_ms - between_ms - RENEWAL_TICK_S * 1000, self._lease_ms / 2)
        self._outage_args = (int(lapse_after_ms), int(between_ms / 2 + 1000))
        self._claim_args = (*times, global_concurrency, *limits, *self._outage_args)
        self._claim, self._rename, self._renew, self._recall, self._settle = (
            Script(call, name) for name in ("claim", "rename", "renew", "recall", "settle")
        )

    async def claim(self, wanted: int, wait: Call | None = None) -> Claims:
        """Claim up to so many jobs.

        :param wait: runs a command once it has waited in Redis; a try of such a claim counts once its lease is renewed
        """
        self._claims += 1
        token = f"{self._name}:{self._claims}"
        wait_ms, blocked, limited, lapsed, *of_jobs = await self._claim(
            self._claim_keys, (wanted, token, self._claims, *self._claim_args, int(wait is not None)), wait
        )
        jobs = []
        ids, due_at, payloads, tries, aborts = of_jobs
        of_each = zip(ids, due_at, payloads, tries or repeat(None), aborts or repeat(None), strict=False)
        for n, (raw_id, due, payload, count, abort) in enumerate(of_each):
            try:
                job_id = raw_id.decode()
            except UnicodeDecodeError:
                job_id = await self._readable(raw_id, token)
            asked = float(abort) if abort else None
            lease = Lease(job_id, token, bool(tries))
            jobs.append(Claim(lease, int(float(due)), finished_tries(count) + 1, n < lapsed, asked, payload))
        return Claims(jobs, None if wait_ms is None else wait_ms / 1000, bool(blocked), bool(limited))

    async def _readable(self, raw_id: bytes, token: str) -> str:
        """Give a job that we claimed, and whose id is not UTF-8, an id that is; return that id."""
        renamed = await self._rename(
            keys=[self._queue, keys.leases(self._queue)],
            args=[raw_id, keys.job_id(raw_id), token, self._lease_ms],
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
            keys=[self._queue, keys.leases(self._queue), keys.last_active(self._queue)],
            args=[self._lease_ms, *self._outage_args, *_flat(leases)],
        )
        return [Lease(keys.job_id(raw_id), token.decode()) for raw_id, token in lost]

    async def recall(self, known: Iterable[Lease]) -> int:
        """Give back the jobs of claims whose reply was lost: all but those of ``known`` leases; return how many."""
        recalled: int = await self._recall(
            keys=[self._queue, keys.leases(self._queue), keys.fence(self._name)],
            args=[self._claims + 1, KEEP_FENCE_S, f"{self._name}:", *_flat(known)],
        )
        return recalled

    async def settle(self, batch: Sequence[Settlement]) -> list[int]:
        """Settle claims; return a ``Reply`` for each."""
        flat = [part for end in batch for part in (end.lease.job_id, KINDS[type(end)].read_own(end))]
        for (kind, (token, tried, *shared)), group in groupby(batch, _group):
            flat += (kind.name, token, int(tried), len(list(group)))
            flat += (0 if value is None else value for value in shared)
        settled: list[int] = await self._settle(
            keys=[self._queue, keys.leases(self._queue), keys.ABORT, keys.dead(self._queue), keys.letters(self._queue)],
            args=[MOST_DEAD, MOST_DEAD_BYTES, KEEP_TRIES_S, len(batch), *flat],
        )
        return settled or [Reply.DONE] * len(batch)
