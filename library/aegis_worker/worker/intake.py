"""Claims jobs for the free slots. How an idle worker waits for jobs is in ``wake.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Protocol

from aegis_worker.queue.scripts import Claim, Claims, Scripts
from aegis_worker.worker import idle
from aegis_worker.worker.idle import Again, Busy, Next, Park, Seen
from aegis_worker.worker.keeper import Keeper
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.runner import Runner
from aegis_worker.worker.wake import Listener

MOST_CLAIMED = 128  #: in one claim, so that the first jobs run while Redis handles the next claim


class PollOptions(Protocol):
    """The attributes of the worker that an intake reads. They are arq's."""

    allow_pick_jobs: bool  #: read before a claim, and when its reply has come
    burst: bool
    poll_delay_s: float  #: between two polls of a worker that is not notified of new jobs


class Intake:
    """Polls the queue.

    :param startable: returns how many more jobs this worker may start
    :param lease_s: seconds that a lease lasts
    """

    def __init__(
        self,
        options: PollOptions,
        scripts: Scripts,
        listener: Listener,
        keeper: Keeper,
        runner: Runner,
        peers: Peers,
        *,
        startable: Callable[[], float],
        lease_s: float,
    ) -> None:
        self._scripts = scripts
        self._listener = listener
        self._keeper = keeper
        self._runner = runner
        self._peers = peers
        self._options = options
        self._startable = startable
        self._lease_s = lease_s
        self._next: Next = Again()
        self._notified = False  # of a job, since the last poll
        self._unanswered = False  # Redis may have done a claim whose reply did not come
        self.store_full = False  #: slots are free, but too many ends of jobs wait to be stored
        self.exhausted = False  #: the last poll found no due job, and no job can have become due since

    def notify(self) -> None:
        """Note that a job was enqueued while no claim of this worker waited for it."""
        self._notified = True

    async def poll(self) -> Next:
        """Claim jobs for the free slots. Return what to do next. Raises redis-py's errors."""
        previous, self._next = self._next, Again()
        self._next = await self._poll(previous)
        return self._next

    async def _poll(self, previous: Next) -> Next:
        free = min(self._runner.free, self._startable())
        wanted = int(min(free, MOST_CLAIMED, self._runner.room))
        if not self._options.allow_pick_jobs or wanted <= 0:
            self.store_full = free > 0
            await self._listener.release()
            return Busy()  # until a job ends, or its end is stored
        self.store_full = False
        notified, self._notified = self._notified, False
        self.exhausted = True  # during the claim, others may set it to False
        parked = isinstance(previous, Park) and not notified and self._listener.proved
        if parked:
            wanted = 1  # a worker that freezes meanwhile can take only one job, and the reply is small
        claims = await self._claim(wanted, previous.wait_s if parked else 0)
        if claims.jobs or claims.blocked or claims.limited:
            self.exhausted = False
        if claims.jobs and parked and self._listener.timed_out:
            self._listener.doubt()
        seen = Seen(
            free=free,
            wanted=wanted,
            jobs=len(claims.jobs),
            reclaimed=bool(claims.jobs) and claims.jobs[0].lapsed,
            next_s=inf if claims.wait_s is None else claims.wait_s + self._peers.head_start_s,
            blocked=claims.blocked,
            limited=claims.limited,
        )
        if seen.idle:
            seen.began_to_listen = await self._listen(parked=parked, quiet=not (notified or parked or claims.jobs))
            seen.notified = self._listener.proved
        elif seen.limited or seen.filled:
            await self._listener.release()
        return idle.after(seen, self._options.poll_delay_s)

    async def _listen(self, *, parked: bool, quiet: bool) -> bool:
        """Make new jobs wake this worker. Return whether it has just begun to listen: a job may have come before.

        :param quiet: nothing has come over the listener's connection lately, so the connection has to be checked
        """
        listener = self._listener
        if not self._options.burst:
            await listener.engage()
        if (parked or not listener.listening) and await listener.listen():
            return True
        if listener.connected and quiet:
            await listener.check()
        return False

    async def _claim(self, wanted: int, wait_s: float) -> Claims:
        """Claim at most ``wanted`` jobs and start them. The claim waits in Redis for at most ``wait_s`` seconds."""
        asked = monotonic()
        wait = partial(self._listener.park, within_s=wait_s) if wait_s else None
        self._unanswered = True
        claims = await self._scripts.claim(wanted, wait)
        for claim in await self._still_ours(claims.jobs, asked):
            self._runner.start(claim, begin=self._options.allow_pick_jobs)  # a signal may have come meanwhile
        self._unanswered = False
        if wait and claims.jobs:
            self._keeper.renew_soon()  # only then the tries of these jobs count
        return claims

    async def _still_ours(self, jobs: list[Claim], asked: float) -> list[Claim]:
        """Return the claims that are still ours. If this process stood still, other workers may have some of them."""
        while jobs and monotonic() - asked > self._lease_s / 2:
            asked = monotonic()
            lost = await self._scripts.renew(claim.lease for claim in jobs)
            jobs = [claim for claim in jobs if claim.lease not in lost]
        return jobs

    async def recover(self) -> None:
        """After an outage of Redis: renew our leases, and give back the claims whose replies were lost."""
        runs = self._runner.runs
        runs.lose(await self._scripts.renew(runs.leases()))
        await self._recall()
        self._peers.doubt()

    async def close(self) -> None:
        """Give back a claim whose reply was lost."""
        if self._unanswered:
            await self._recall()

    async def _recall(self) -> None:
        await self._scripts.recall([run.claim.lease for run in self._runner.runs])
        self._unanswered = False
