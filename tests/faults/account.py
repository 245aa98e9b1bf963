"""The account of a scenario: what became of each job, as Redis, its file and the ledger of runs say."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from arq.connections import ArqRedis
from arq.jobs import JobResult, deserialize_result
from redis.asyncio import Redis

from aegis_worker.queue import admin, keys
from tests.faults.fleet import Disturbance
from tests.faults.load import QUEUE, Job

BATCH = 500
EARLY_S = 0.02  #: a millisecond for rounding, and the time it takes from one clock to be read to the other


@dataclass
class Run:
    pid: int
    number: int  #: of the try
    begun: float
    ended: float = inf


@dataclass
class Account:
    """``wrong`` is empty where everything is as it should be."""

    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    repeats: int = 0  #: runs beyond those that the jobs asked for
    burnt: int = 0  #: tries beyond those that the jobs asked for
    letters: int = 0
    by_pid: Counter[int] = field(default_factory=Counter)  #: runs
    latest: dict[int, float] = field(default_factory=dict)  #: when each process began its last run

    def check(self, holds: object, what: str) -> None:
        if not holds:
            self.wrong.append(what)


def read_runs(entries: Iterable[bytes]) -> list[Run]:
    runs: dict[int, Run] = {}
    for number, entry in enumerate(map(json.loads, entries), 1):
        if "of" in entry:
            runs[entry["of"]].ended = entry["ended"]
        else:
            runs[number] = Run(entry["pid"], entry["try"], entry["begun"])
    return list(runs.values())


async def take(
    redis: ArqRedis,
    ledger: Redis,
    jobs: dict[str, Job],
    disturbances: Sequence[Disturbance],
    *,
    stock: Collection[int],
    exact_tries: bool = False,
) -> Account:
    """Check results, dead letters, runs and that nothing is left over.

    :param stock: process ids of stock workers, which leave no dead letters
    :param exact_tries: whether no try may be burnt
    """
    account = Account()
    results, runs = await _results(redis, list(jobs)), await _runs(ledger, list(jobs))
    letters = {
        letter["id"]: letter for letter in await admin.dead_letters(redis, QUEUE, await admin.dead_ids(redis, QUEUE))
    }
    account.letters = len(letters)
    by_pid: dict[int, list[Disturbance]] = defaultdict(list)
    for disturbance in disturbances:
        by_pid[disturbance.pid].append(disturbance)

    for job_id, job in jobs.items():
        result, ran, name = results[job_id], runs[job_id], f"{job_id} ({job.function})"
        cut = [run for run in ran if any(d.covers(run.pid, run.begun, run.ended) for d in by_pid[run.pid])]
        told = f"{name}: {result}, ran {ran}, of which disturbed {len(cut)}"
        account.runs += len(ran)
        account.by_pid.update(run.pid for run in ran)
        for run in ran:
            account.latest[run.pid] = max(run.begun, account.latest.get(run.pid, 0))
        account.repeats += max(0, len(ran) - job.tries)
        account.check(len(ran) <= job.tries + len(cut), f"{told}: it ran too often")
        for earlier, later in zip([None, *ran], ran, strict=False):
            if earlier in cut:
                continue
            due = job.enqueued + job.defer_s if earlier is None else earlier.ended + job.wait_s
            account.check(due == inf or later.begun >= due - EARLY_S, f"{told}: {due - later.begun:.3f}s too early")
        if result is None:
            account.check(False, f"{told}: no result")
            continue
        account.check(result.success == job.succeeds, f"{told}: not the end it should have")
        account.check(ran or not job.succeeds, f"{told}: a result without a run")
        account.burnt += max(0, result.job_try - job.tries)
        if exact_tries:
            account.check(result.job_try == job.tries, f"{told}: it needs {job.tries} tries")
            account.check(not ran or len({run.number for run in ran}) == job.tries, f"{told}: tries that did not run")
        by_stock = any(run.pid in stock for run in ran[-1:])
        account.check(
            (job_id in letters) == (not result.success) or (by_stock and not result.success),
            f"{told}: dead letter {letters.get(job_id)}",
        )
    account.check(letters.keys() <= jobs.keys(), f"dead letters of nobody: {letters.keys() - jobs.keys()}")
    for left in await _left_over(redis, mixed=bool(stock)):
        account.check(False, left)
    return account


async def _results(redis: ArqRedis, ids: list[str]) -> dict[str, JobResult | None]:
    found: dict[str, JobResult | None] = {}
    for first in range(0, len(ids), BATCH):
        some = ids[first : first + BATCH]
        values = await redis.mget([keys.RESULT + job_id for job_id in some])
        for job_id, value in zip(some, values, strict=True):
            found[job_id] = deserialize_result(value) if value else None
    return found


async def _runs(ledger: Redis, ids: list[str]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for first in range(0, len(ids), BATCH):
        async with ledger.pipeline(transaction=False) as pipe:
            for job_id in ids[first : first + BATCH]:
                pipe.lrange(f"runs:{job_id}", 0, -1)
            lists = await pipe.execute()
        found |= {job_id: read_runs(entries) for job_id, entries in zip(ids[first : first + BATCH], lists, strict=True)}
    return found


async def _left_over(redis: ArqRedis, *, mixed: bool) -> list[str]:
    """What is there that should have gone with the last job and the last worker; stock ones know arq's keys alone."""
    left = []
    for prefix in (keys.IN_PROGRESS, keys.JOB, keys.RETRY, *([] if mixed else [keys.RAISED])):
        if found := [key async for key in redis.scan_iter(match=f"{prefix}*", count=1000)]:
            left.append(f"left over: {len(found)} keys such as {found[:3]}")
    for key in (QUEUE, keys.leases(QUEUE)):
        if members := await redis.zrange(key, 0, 9, withscores=True):
            left.append(f"left over in {key}: {members}")
    return left


def audit(written: Iterable[list[bytes]], jobs: dict[str, Job]) -> list[str]:
    """Check in the server's own file that each job ended once, and that nothing touched it afterwards."""
    ends: Counter[str] = Counter()
    late: Counter[tuple[str, str]] = Counter()
    result, mark, queue = keys.RESULT.encode(), keys.IN_PROGRESS.encode(), QUEUE.encode()
    for command in written:
        match command[0].upper():
            case b"SET" if command[1].startswith(result):
                ends[command[1].removeprefix(result).decode()] += 1
            case b"SET" if command[1].startswith(mark) and (job_id := command[1].removeprefix(mark).decode()) in ends:
                late[job_id, "claimed"] += 1
            case b"ZADD" if command[1] == queue:
                for job_id in {member.decode() for member in command[3:]} & ends.keys():
                    late[job_id, "queued"] += 1
    wrong = [f"{job_id} was {what} after its end, {n} times" for (job_id, what), n in late.items()]
    return wrong + [f"{job_id} ended {ends[job_id]} times" for job_id in jobs if ends[job_id] != 1]
