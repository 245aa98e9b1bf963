"""Claims jobs for the slots that are free; what a worker that idles waits for is in ``wake.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic

from aegis_worker.queue.scripts import Claim, Claims, Scripts
from aegis_worker.worker import idle
from aegis_worker.worker.idle import Again, Busy, Next, Park, Seen
from aegis_worker.worker.keeper import Keeper
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.runner import Runner
from aegis_worker.worker.wake import Listener

MOST_CLAIMED = 128  #: at a time: while Redis sees to the next batch, the jobs of the last one run


class Intake:
    """Polls the queue.

    :param accepts: whether jobs may begin; asked before a claim, and when its reply is there
    :param most: how many jobs may be started at all from now on
    :param poll_s: seconds between two polls of a worker that is not notified of new jobs
    :param listens: whether to be notified of them
    """

    def __init__(
        self,
        scripts: Scripts,
        listener: Listener,
        keeper: Keeper,
        runner: Runner,
        peers: Peers,
        *,
        accepts: Callable[[], bool],
        most: Callable[[], float],
        lease_s: float,
        poll_s: float,
        listens: bool,
    ) -> None:
        self._scripts = scripts
        self._listener = listener
        self._keeper = keeper
        self._runner = runner
        self._peers = peers
        self._accepts = accepts
        self._most = most
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._listens = listens
        self._next: Next = Again()
        self._notified = False  # of a job since the last poll
        self._unanswered = False  # Redis may have taken a claim whose jobs we do not run
        self.backlogged = False  #: slots are free, but too many ends wait to be stored
        self.exhausted = False  #: the last poll found nothing due, and nothing that may be due came about since

    @property
    def parks(self) -> bool:
        """Whether the next claim is to wait in Redis."""
        return isinstance(self._next, Park)

    def notify(self) -> None:
        """Say that a job was enqueued, and that no claim of ours waits for it."""
        self._notified = True

    async def poll(self) -> Next:
        """Claim jobs for the slots that are free; return what to do after it. Raises what redis-py raises."""
        previous, self._next = self._next, Again()
        self._next = await self._poll(previous)
        return self._next

    async def _poll(self, previous: Next) -> Next:
        free = int(min(self._runner.free, self._most()))
        wanted = min(free, MOST_CLAIMED, self._runner.room)
        if not self._accepts() or wanted <= 0:
            self.backlogged = free > 0
            await self._listener.release()
            return Busy()  # the end of a job wakes us, or that it is stored
        self.backlogged = False
        notified, self._notified = self._notified, False
        self.exhausted = True  # unless something comes about meanwhile
        parked = isinstance(previous, Park) and not notified and self._listener.proved
        if parked:
            wanted = 1  # its reply is small, and so is what a worker takes that stands still meanwhile
        claims = await self._claim(wanted, previous.wait_s if parked else 0)
        if claims.jobs or claims.blocked or claims.limited:
            self.exhausted = False
        if claims.jobs and parked and self._listener.unprompted:
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
            await self._listen(seen, parked=parked, notified=notified)
        elif seen.limited or seen.filled:
            await self._listener.release()
        return idle.after(seen, self._poll_s)

    async def _listen(self, seen: Seen, *, parked: bool, notified: bool) -> None:
        """See to it that new jobs wake us, and note in what the poll has seen whether they do."""
        listener = self._listener
        if self._listens:
            await listener.engage()
        if parked or not listener.listening:
            seen.began_to_listen = await listener.listen()
        if listener.connected and not (notified or parked or seen.jobs or seen.began_to_listen):
            await listener.check()
        seen.notified = listener.proved

    async def _claim(self, wanted: int, wait_s: float) -> Claims:
        """Claim up to so many jobs and start them; with ``wait_s`` the claim waits in Redis for so long at most."""
        asked = monotonic()
        wait = partial(self._listener.park, within_s=wait_s) if wait_s else None
        self._unanswered = True
        claims = await self._scripts.claim(wanted, wait)
        for claim in await self._still_ours(claims.jobs, asked):
            self._runner.start(claim, begin=self._accepts())  # a signal may have come meanwhile
        self._unanswered = False
        if wait and claims.jobs:
            self._keeper.renew_soon()  # from then on they count as tried
        return claims

    async def _still_ours(self, jobs: list[Claim], asked: float) -> list[Claim]:
        """Return claims less those that others took, where we stood still for longer than leases last meanwhile."""
        while jobs and monotonic() - asked > self._lease_s / 2:
            asked = monotonic()
            lost = await self._scripts.renew(claim.lease for claim in jobs)
            jobs = [claim for claim in jobs if claim.lease not in lost]
        return jobs

    async def recover(self) -> None:
        """After an outage: renew our own leases, and give back claims whose replies were lost."""
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
