"""One scenario: a server, a fleet, a load and faults at random times, then the account of every job.

Everything that is random comes of one seed. ``FAULTS_SEED`` sets it, ``FAULTS_JOBS`` the number of jobs. The load and
what happens are the same again then; when it happens, and so to which of the processes, follows the machine's pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random, SystemRandom
from time import monotonic
from typing import Any

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from aegis_worker.queue import keys, replicas
from tests.faults import account, load
from tests.faults.fleet import Fleet
from tests.faults.load import QUEUE, SECONDS, Job
from tests.faults.server import Server

SEED = int(os.environ.get("FAULTS_SEED") or SystemRandom().randrange(1 << 32))
AT_ONCE = 20  #: enqueued at a time

Strike = Callable[[], Awaitable[object]]


class Arena:
    """What a scenario has at hand. Use it as a context; ``run`` is the scenario."""

    def __init__(self, name: str, folder: Path, **server_options: str) -> None:
        self.name = name
        self.seed = SEED
        self.rng = Random(f"{SEED} {name}")
        self.server = Server(folder / "redis", **server_options)
        self.ledger = Server(folder / "ledger", appendonly="no", maxmemory="0")
        self.fleet = Fleet(folder / "workers", self.rng, port=self.server.port, ledger=self.ledger.port)
        self.jobs = load.mixed(self.rng)
        self.put: dict[str, Job] = {}  #: jobs that the scenario itself has put into Redis
        self._aside: list[asyncio.Task[object]] = []
        self._watches: list[asyncio.Task[object]] = []

    @property
    def redis(self) -> ArqRedis:
        return self.server.redis

    async def __aenter__(self) -> Arena:
        print(f"\n{self.name}: FAULTS_SEED={self.seed} FAULTS_JOBS={load.JOBS}", flush=True)
        await asyncio.gather(self.server.start(), self.ledger.start())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fleet.abandon()
        for task in self._aside + self._watches:
            task.cancel()
        for server in (self.server, self.ledger):
            await server.redis.aclose()
            server.stop()

    async def run(
        self,
        strike: Strike | None = None,
        *,
        every_s: float = 0.5,
        seconds: float = SECONDS,
        drained_within_s: float = 30,
        exact_tries: bool = False,
    ) -> account.Account:
        """Enqueue the jobs while faults happen, wait until the queue is empty, stop the fleet, check everything."""
        begun = monotonic()
        producing = asyncio.create_task(self._produce(seconds))
        self._aside.append(producing)
        while monotonic() < begun + seconds:
            await asyncio.sleep(self.rng.uniform(0, 2 * every_s))
            if strike:
                await strike()
        async with asyncio.timeout(drained_within_s):
            await producing
        await asyncio.gather(*self._aside)
        wrong = await self._drain(drained_within_s + load.JOBS / 500)
        drained_s = monotonic() - begun
        wrong += await self.fleet.finish()
        listed = {replica["replica"] for replica in await replicas.read(self.redis, QUEUE)}
        if stayed := listed & self.fleet.stopped():
            wrong.append(f"stopped in good order, and still in the registry: {stayed}")
        stock = {member.pid for member in self.fleet.members if member.stock}
        taken = await account.take(
            self.redis,
            self.ledger.redis,
            self.jobs | self.put,
            self.fleet.disturbances,
            stock=stock,
            exact_tries=exact_tries,
        )
        self.server.stop()
        taken.wrong += wrong + account.audit(self.server.written(), self.jobs | self.put)
        print(
            f"{self.name}: {len(self.jobs | self.put)} jobs drained in {drained_s:.1f}s, {self.fleet.faults} faults, "
            f"{taken.runs} runs, {taken.repeats} repeats, {taken.burnt} tries burnt, {taken.letters} dead letters",
            flush=True,
        )
        self._expect_none(taken.wrong)
        return taken

    def aside(self, doing: Any) -> None:
        """Do something beside the rest; ``run`` waits for it."""
        self._aside.append(asyncio.create_task(doing))

    def watch(self, doing: Any) -> None:
        """Do something beside the rest, to its end."""
        self._watches.append(asyncio.create_task(doing))

    async def add(self, job_id: str, job: Job) -> None:
        """Enqueue as a stock producer, again and again until Redis has taken it."""
        self.jobs[job_id] = job
        job.enqueued = job.enqueued or monotonic()
        while True:
            with contextlib.suppress(RedisError, OSError):
                # None says that there is such a job, but also, as redis-py takes it for a lost race, that the
                # connection was lost.
                if await self.redis.enqueue_job(
                    job.function, *job.args, _job_id=job_id, _queue_name=QUEUE, _defer_by=job.defer_s or None
                ) or await self.redis.exists(keys.JOB + job_id, keys.RESULT + job_id):
                    return
            await asyncio.sleep(0.05)

    async def _produce(self, seconds: float) -> None:
        """Half of the jobs at once, so that claims are full, and the others one after another."""
        begun, waiting = monotonic(), list(self.jobs.items())
        half = len(waiting) // 2
        for first in range(0, len(waiting), AT_ONCE):
            await asyncio.sleep(max(0.0, begun + seconds * (first - half) / half - monotonic()))
            await asyncio.gather(*(self.add(*job) for job in waiting[first : first + AT_ONCE]))

    async def _drain(self, within_s: float) -> list[str]:
        deadline = monotonic() + within_s
        while left := await self.redis.zrange(QUEUE, 0, 9, withscores=True):
            if monotonic() > deadline:
                return [f"not drained in {within_s:.0f}s: {await self.redis.zcard(QUEUE)} are left, such as {left}"]
            await asyncio.sleep(0.05)
        return []

    def _expect_none(self, wrong: list[str]) -> None:
        if not wrong:
            return
        said = "\n".join(f"  {count} × {line[:200]}" for line, count in self.fleet.said().most_common(30))
        few = "\n".join(f"- {what[:1500]}" for what in wrong[:20])
        raise AssertionError(
            f"FAULTS_SEED={self.seed} FAULTS_JOBS={load.JOBS}: {len(wrong)} things are wrong:\n{few}\nlogs:\n{said}"
        )
