"""Claiming jobs: a ``JobRunner`` that looks for jobs whenever slots are free, and is told of them while it idles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from aegis_worker.queue.scripts import Claim, Claims, Scripts
from aegis_worker.queue.settlement import Retried
from aegis_worker.worker.commits import MOST_JOBS
from aegis_worker.worker.execution import Again, Run
from aegis_worker.worker.keeper import Keeper
from aegis_worker.worker.runner import JobRunner
from aegis_worker.worker.wake import Listener

logger = logging.getLogger(__name__)

MOST_CLAIMED = 128  #: at a time: while Redis sees to the next batch, the jobs of the last one run
IDLE_LOOK_S = 5.0  #: between two looks of a worker that is told of new jobs
SOON_S = 0.05  #: what is due by then is waited for here, since a claim that waits in Redis takes one job only
BLOCKED_LOOK_S = 1.0  #: while jobs are due that stock workers run, or that have to wait for others to end
CLEANUP_MARGIN_S = 60  #: what a job past its time has before its lease is no longer renewed


class JobClaimer(JobRunner):
    """What goes on beside it is in ``worker.py``, which calls ``_look`` for as long as it serves."""

    _scripts: Scripts
    _listener: Listener
    _keeper: Keeper

    def __init__(self, functions: Sequence[Any] = (), *, lease: float = 12, **options: Any) -> None:
        super().__init__(functions, **options)
        self.lease_s = lease
        self._ends_s = self.in_progress_timeout_s + CLEANUP_MARGIN_S  # in which any job has ended for certain
        self._wake = asyncio.Event()  # for a look at the queue
        self._behind = False  # slots are free, but too many ends wait to be stored
        self._dry = False  # the last look found nothing due, and nothing was queued or stored since it began
        self._idle_s = 0.0  # how long the next claim may wait in Redis; 0: it does not
        self._idled = False  # since it last could take no more
        self._unheard = False  # Redis may have taken a claim whose jobs we do not run
        self._told = False  # we heard of a job since the last look
        self._pulsed = False  # cron jobs that were due when we began are enqueued
        self._stop_at: float | None = None

    async def _recover(self) -> None:
        """Renew our own leases and give back claims that we never heard of."""
        self._lose(await self._scripts.renew(self._leases()))
        await self._recall()
        self._peers.doubt()

    async def _recall(self) -> None:
        await self._scripts.recall([run.claim.lease for run in self._runs.values()])
        self._unheard = False

    async def _look(self) -> float:
        """Claim jobs for the slots that are free; return how many seconds there is nothing to look for."""
        idle_s, self._idle_s = self._idle_s, 0.0
        free, wanted = self._slots()
        if not self.allow_pick_jobs or wanted <= 0:
            await self._idle_no_more()
            return IDLE_LOOK_S  # the end of a job wakes us, or that it is stored
        told, self._told = self._told, False
        self._dry = True  # unless something comes about meanwhile
        parked = idle_s > 0 and not told and self._listener.proved
        if parked:
            wanted = 1  # its reply is small, and so is what a worker takes that stands still meanwhile
        claims = await self._claim(wanted, idle_s if parked else 0)
        next_s = inf if claims.wait_s is None else claims.wait_s + self._peers.head_start_s
        if claims.jobs or claims.blocked or claims.limited:
            self._dry = False
        if claims.jobs and parked and self._listener.overslept:
            self._listener.doubt()
        # The first ones may have been our own, whose leases had lapsed, and took no slot.
        if claims.limited or (len(claims.jobs) == free and not claims.jobs[0].lapsed):
            await self._idle_no_more()
            return min(next_s, IDLE_LOOK_S) if claims.limited else IDLE_LOOK_S
        if len(claims.jobs) == wanted:
            return 0
        return await self._idle(claims, next_s, told=told, parked=parked)

    def _slots(self) -> tuple[int, int]:
        """Return how many slots are free, and how many jobs to claim for them."""
        free = self.max_jobs - len(self.tasks) - len(self._hooks)
        if self.burst and self.max_burst_jobs >= 0:
            free = min(free, self.max_burst_jobs - self._jobs_started())
        # Ends that wait to be stored are kept in memory: no more of them than Redis keeps up with.
        wanted = min(free, MOST_CLAIMED, self.max_jobs + MOST_JOBS - len(self._runs))
        self._behind = wanted <= 0 < free
        return free, wanted

    async def _idle(self, claims: Claims, next_s: float, *, told: bool, parked: bool) -> float:
        """See to it that we are told of jobs, as no more are due; return what ``_look`` does."""
        self._idled = True
        if not self._listener.connected and not self.burst:
            await self._listener.start()
        if (parked or not self._listener.listening) and await self._listener.listen():
            return 0  # for what was enqueued meanwhile
        if self._listener.connected and not (told or parked or claims.jobs):
            await self._listener.check()
        wait_s = min(next_s, IDLE_LOOK_S if self._listener.proved else self.poll_delay_s)
        if claims.blocked:
            wait_s = min(wait_s, BLOCKED_LOOK_S)
        if self._listener.proved and wait_s > SOON_S:
            self._idle_s = wait_s
        return wait_s

    async def _idle_no_more(self) -> None:
        """There is more than we can take, and no need to be told; what we were told of, others may not know."""
        if self._idled:
            self._idled = False
            await self._listener.unlisten()

    async def _claim(self, wanted: int, wait_s: float) -> Claims:
        """Claim up to so many jobs and start them; with ``wait_s`` the claim waits in Redis for so long at most."""
        asked = monotonic()
        wait = partial(self._listener.park, within_s=wait_s) if wait_s else None
        self._unheard = True
        claims = await self._scripts.claim(wanted, wait)
        for claim in await self._still_ours(claims.jobs, asked):
            self._start(claim)
        self._unheard = False
        if wait and claims.jobs:
            self._keeper.renew_soon()  # from then on they count as tried
        return claims

    async def _still_ours(self, jobs: list[Claim], asked: float) -> list[Claim]:
        """Return claims less those that others took, where we stood still for longer than leases last meanwhile."""
        while jobs and monotonic() - asked > self.lease_s / 2:
            asked = monotonic()
            lost = await self._scripts.renew(claim.lease for claim in jobs)
            jobs = [claim for claim in jobs if claim.lease not in lost]
        return jobs

    def _hear_of_job(self) -> None:
        """A job was enqueued, and no claim of ours waits for the bell: look at once."""
        self._told = True
        self._wake.set()

    def _look_now(self) -> None:
        self._wake.set()
        self._listener.rouse()

    async def _nap(self, wait_s: float) -> None:
        """Wait until the next look; a job's end, a new job or a signal cuts it short."""
        if self._stop_at is not None:
            wait_s = max(0, min(wait_s, self._stop_at - monotonic()))
        if not self._wake.is_set():
            timer = self.loop.call_later(wait_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
        else:
            await asyncio.sleep(0)  # jobs that can end now do, and their slots are claimed for together
        self._wake.clear()

    async def _pause(self, wait_s: float) -> None:
        """Wait for so long, or until all is over."""
        until = monotonic() + wait_s
        while (left_s := until - monotonic()) > 0 and not self._is_over():
            await self._nap(left_s)

    def _is_over(self) -> bool:
        if self._stop_at is not None:
            return not self.tasks or monotonic() >= self._stop_at
        if not (self.burst and self._pulsed) or self.tasks or self._hooks or self._commits.pending:
            return False
        return self._dry or 0 <= self.max_burst_jobs <= self._jobs_started()

    def _slot_freed(self) -> None:
        self._wake.set()

    def _end_stored(self) -> None:
        self._dry = False  # a job that is to run again may be due
        if self.burst or self._behind:
            self._wake.set()

    def _start(self, claim: Claim) -> None:
        run = self._runs.get(claim.lease.job_id)
        if claim.lapsed and run and self._is_kept(run):  # it was ours, and we are at it still
            run.claim.lease.token, run.claim.lease.tried = claim.lease.token, claim.lease.tried
            return
        hung = run is not None and run.task is not None and not run.task.done()
        run = Run(claim, monotonic() + self._ends_s)
        if hung:  # it does not end, though it was told to: others may try the job, but it does not run beside itself
            self._settle(run, Retried(claim.lease, int(max(BLOCKED_LOOK_S, self._peers.leave()) * 1000)))
            return
        self._runs[claim.lease.job_id] = run
        if not self.allow_pick_jobs:  # a signal came while the claim was on its way
            self._settle_back(run, Again(counts=False))
            return
        run.task = self.tasks[claim.lease.job_id] = self.loop.create_task(self._carry(run))
        run.task.add_done_callback(partial(self._ended, run))

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        if self.tasks.get(run.claim.lease.job_id) is task:
            del self.tasks[run.claim.lease.job_id]
        self._slot_freed()
        if task.cancelled():
            logger.error("job %s did not end in time: its lease will lapse", run.claim.lease.job_id)
        elif error := task.exception():
            logger.critical("job %s ended outside its bounds", run.claim.lease.job_id, exc_info=error)
