"""What the Redis scripts should have made of Redis, with which ``test_scripts_model.py`` compares it each step."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from arq.connections import RedisSettings, create_pool
from hypothesis.stateful import RuleBasedStateMachine, invariant

from aegis_worker import RateLimit
from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Claim, Scripts
from aegis_worker.queue.settlement import Completed
from tests.integration.conftest import QUEUE

LEASE_S, ENDS_S, PERIOD_S = 3600, 36_000, 7200  # nothing comes about by itself
MOST_DEAD, MOST_DEAD_BYTES = 2, 110  # a long letter is more by itself, three short ones are less
FAR_MS = 10**9
HOUR_MS = 3_600_000
BEYOND_MS = 10**14  #: no payload lives for so long, also of a job that is due in 100,000 days
STOCK = "1"  # what stock workers set as a mark
CRON_START = datetime(2001, 9, 9, tzinfo=UTC)

#: All keys with their values and times to live.
DUMP = """
local read = { string = { 'GET' }, hash = { 'HGETALL' }, set = { 'SMEMBERS' }, list = { 'LRANGE', 0, -1 },
               zset = { 'ZRANGE', 0, -1, 'WITHSCORES' } }
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local name, from, to, scores = unpack(read[kind])
  local value
  if scores then value = redis.call(name, key, from, to, scores)
  elseif from then value = redis.call(name, key, from, to)
  else value = redis.call(name, key) end
  all[#all + 1] = { key, kind, value, redis.call('PTTL', key) }
end
return all
"""


@dataclass(frozen=True)
class Around:
    """A time that is known to lie between two."""

    low: float
    high: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int | float) and self.low <= other <= self.high

    def __add__(self, ms: float) -> Around:
        return Around(self.low + ms, self.high + ms)

    __hash__ = None  # type: ignore[assignment]


Time = Any  # float, or Around until it was read once


@dataclass
class Job:
    """One that was accepted and has not ended."""

    score: Time  # in the queue: when it is due, or, once claimed, when it has ended for certain
    payload: bytes | None
    tries: int = 0  # that are over, or that a stock worker has begun
    lapses: Time = None  # its lease, also one that has lapsed, until somebody claims it again
    unread: bool = False  # that lease is of a claim that waited, and was not renewed


@dataclass
class Worker:
    scripts: Scripts
    known: dict[str, str] = field(default_factory=dict)  # job id -> token, for what it was told of and has not settled
    fence: int = 0


def pairs(flat: list[Any]) -> dict[str, Any]:
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


class Model(RuleBasedStateMachine):
    """What there should be in Redis, and how it is compared with what there is. Steps change both."""

    redis_settings: RedisSettings
    rate: int
    concurrency: int
    workers: list[Worker]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = self.run(
            create_pool(self.redis_settings, job_serializer=lambda job: json.dumps(job["a"]).encode())
        )
        self.run(self.redis.flushall())
        self.sound = True
        self.clock = 1000  # ms since the epoch, for all that is to lie in the past, in order
        self.jobs: dict[str, Job] = {}
        self.marks: dict[str, str] = {}
        self.results: dict[str, bytes] = {}
        self.dead: dict[str, tuple[Time, bytes, bytes]] = {}  # time of death, payload, letter
        self.raised: dict[str, str] = {}
        self.aborts: dict[str, int] = {}
        self.unique: dict[str, str] = {}
        self.begun: list[Time] = []
        self.stale: dict[str, Time] = {}  # leases of jobs that ended in a stock worker, until a claim comes upon them
        self.claims: list[Claim] = []  # all that workers have heard of, also those that are long over
        self.rung = False
        self.ticks: dict[str, int] = {}
        self.started: set[str] = set()

    def scripts(self, rate: int = 0, concurrency: int = 0) -> Scripts:
        limit = RateLimit(rate, PERIOD_S) if rate else None
        return Scripts(
            self.redis.execute_command,
            QUEUE,
            lease_s=LEASE_S,
            ends_s=ENDS_S,
            rate_limit=limit,
            global_concurrency=concurrency,
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def timed(self, work: Coroutine[Any, Any, Any]) -> tuple[Any, Around]:
        """Run a command; return its answer, and when the server has seen to it."""
        before = now_ms()
        answer = self.run(work)
        return answer, Around(before, now_ms())

    def past(self) -> int:
        self.clock += 1
        return self.clock

    def in_use(self, job_id: str) -> bool:
        return job_id in self.results or (job_id in self.jobs and self.jobs[job_id].payload is not None)

    def is_held(self, job_id: str) -> bool:
        return job_id in self.marks or (job_id in self.jobs and self.jobs[job_id].payload is not None)

    def may_be_enqueued(self, job_id: str) -> bool:
        """Not all that arq allows for: the id of a job whose payload has expired before it ended, though it counts as
        free, is that of two jobs then. And the lease of a job that a stock worker ended would be the next job's."""
        return job_id not in self.stale and (job_id not in self.jobs or self.jobs[job_id].payload is not None)

    def lapsed(self, job_id: str) -> bool:
        return self.jobs[job_id].lapses is not None and self.marks.get(job_id) in (None, STOCK)

    def leased(self) -> list[str]:
        return [job_id for job_id in self.jobs if self.marks.get(job_id, STOCK) != STOCK]

    def dead_bytes(self) -> int:
        return sum(len(payload) + len(letter) for _, payload, letter in self.dead.values())

    # -- what has to hold ------------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        self.sound = False
        found, lasting = self.dump()
        assert found == self.expected()
        for_ever = {QUEUE, keys.leases(QUEUE), keys.ABORT, keys.dead(QUEUE), keys.ticks(QUEUE), keys.bell(QUEUE)}
        assert lasting <= for_ever | {keys.letters(QUEUE)}

        leased = self.leased()
        assert not self.concurrency or len(leased) <= self.concurrency
        assert not self.rate or len(self.begun) <= self.rate
        # What time it was is known now.
        for job_id, job in self.jobs.items():
            job.score = found[QUEUE][job_id]
            if job.lapses is not None:
                job.lapses = found[keys.leases(QUEUE)][job_id]
                if job_id not in leased and not is_past(job.lapses):  # a second goes by
                    job.lapses, job.unread = self.past(), False
                    self.run(self.redis.zadd(keys.leases(QUEUE), {job_id: self.clock}))
        self.begun = found.get(keys.rate_window(QUEUE), [])
        for job_id, (at, *letter) in self.dead.items():
            if isinstance(at, Around):  # two in one millisecond would have no order that is known
                self.dead[job_id] = (self.past(), *letter)  # type: ignore[assignment]
                self.run(self.redis.zadd(keys.dead(QUEUE), {job_id: self.clock}))
        self.sound = True

    def dump(self) -> tuple[dict[str, Any], set[str]]:
        """Return all that is in Redis, and the keys that stay for ever."""
        found: dict[str, Any] = {}
        lasting = set()
        for key, kind, value, ttl in self.run(self.redis.eval(DUMP, 0)):
            name = key.decode()
            if name == keys.last_active(QUEUE):  # of an outage, which no step brings about
                continue
            if kind == b"zset":
                value = {member: float(score) for member, score in pairs(value).items()}
            elif kind == b"hash":
                value = pairs(value)
            elif kind == b"list":
                value = [float(at) for at in value]
            elif kind == b"set":
                value = {member.decode() for member in value}
            found[name] = value
            if ttl < 0:
                lasting.add(name)
        return found, lasting

    def expected(self) -> dict[str, Any]:
        """Return all that should be in Redis."""
        leases = self.stale | {job_id: job.lapses for job_id, job in self.jobs.items() if job.lapses is not None}
        whole = {
            QUEUE: {job_id: job.score for job_id, job in self.jobs.items()},
            keys.leases(QUEUE): leases,
            keys.ABORT: self.aborts,
            keys.dead(QUEUE): {job_id: at for job_id, (at, _, _) in self.dead.items()},
            keys.rate_window(QUEUE): self.begun,
            keys.letters(QUEUE): {
                f"{what}:{job_id}": text
                for job_id, (_, payload, letter) in self.dead.items()
                for what, text in (("payload", payload), ("letter", letter))
            }
            | ({"bytes": str(self.dead_bytes()).encode()} if self.dead else {}),
            keys.bell(QUEUE): {"": 0.0} if self.rung else {},
            keys.ticks(QUEUE): {name: str(at).encode() for name, at in self.ticks.items()},
            keys.started(QUEUE, "first"): self.started,
        }
        whole |= {keys.JOB + job_id: job.payload for job_id, job in self.jobs.items()}
        whole |= {keys.RETRY + job_id: str(job.tries).encode() for job_id, job in self.jobs.items() if job.tries}
        whole |= {keys.RAISED + job_id: raised.encode() for job_id, raised in self.raised.items()}
        whole |= {keys.IN_PROGRESS + job_id: mark.encode() for job_id, mark in self.marks.items()}
        whole |= {keys.RESULT + job_id: result for job_id, result in self.results.items()}
        whole |= {keys.unique(QUEUE, key): job_id.encode() for key, job_id in self.unique.items()}
        whole |= {keys.fence(w.scripts._name): str(w.fence).encode() for w in self.workers if w.fence}
        return {key: value for key, value in whole.items() if value}

    def teardown(self) -> None:
        """Whatever has come about, every job can be had and ended, and then nothing is left of it."""
        try:
            if self.sound:
                self.finish()
        finally:
            self.run(self.redis.aclose(close_connection_pool=True))
            self.runner.close()

    def finish(self) -> None:
        self.run(self.redis.delete("none", *(keys.IN_PROGRESS + job_id for job_id in self.marks)))
        for job_id, job in self.jobs.items():
            key = QUEUE if job.lapses is None else keys.leases(QUEUE)
            self.run(self.redis.zadd(key, {job_id: self.past()}))
        worker, had = self.scripts(), []
        while claims := self.run(worker.claim(5)).jobs:
            had += [claim.lease.job_id for claim in claims]
            assert all(self.run(worker.settle([Completed(claim.lease) for claim in claims])))
        assert sorted(had) == sorted(self.jobs)
        assert not {QUEUE, keys.leases(QUEUE)} & self.dump()[0].keys()


def earliest(at: Time) -> float:
    return at.low if isinstance(at, Around) else at


def now_ms() -> int:
    return time.time_ns() // 1_000_000  # as the server does; arq rounds, so that its now may be one ahead


def is_past(at: Time) -> bool:
    return earliest(at) <= now_ms() + 1
