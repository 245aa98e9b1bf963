"""The worker: it claims jobs, from its start to its stop.

It keeps arq's arguments, functions, cron jobs and wire format, and replaces how jobs are claimed, run and ended. Three
things go on at a time: ``main`` claims jobs for the slots that are free, ``JobRunner`` runs each in a task of its own,
and ``Commits`` stores how they ended. ``Keeper`` renews the leases from a thread, ``Listener`` has Redis tell of new
jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import version
from math import inf
from signal import Signals
from time import monotonic, time
from typing import Any

from . import health, keys
from .commits import MOST_JOBS, Commits
from .connection import connect, prepare
from .cron import Cron
from .execution import Again, Cause, Run
from .keeper import Keeper
from .peers import Peers
from .policies import RateLimit
from .runner import JobRunner
from .scripts import RECONNECT, RENEWALS_PER_LEASE, UNAVAILABLE, Call, Claim, Claims, Scripts, Settlement, cancelled
from .wake import PARK_S, Listener
from .wire import Wire

if not version("arq").startswith("0.28."):
    raise ImportError(f"this runtime is written against arq 0.28, not {version('arq')}: its internals differ")

logger = logging.getLogger(__name__)

PULSE_S = 0.5  #: between two looks at health and cron jobs
BEAT_EVERY_S = 1.0
# After the drain, all of them together less than the `STOP_MARGIN_S` of the app's configuration:
LAST_CALL_S = 1.0  #: what Redis has to answer a call that is under way
CANCEL_WAIT_S = 5.0  #: what a cancelled job has to clean up before the process ends without it
GIVE_BACK_S = 7.0  #: of which the last ends have the rest to be stored before the process ends without them
FORGET_S = 1.0  #: what Redis has to take us out of the registry
FORGET_AGAIN_S = 0.05  #: between two tries of that
MOST_CLAIMED = 128  #: at a time: while Redis sees to the next batch, the jobs of the last one run
IDLE_LOOK_S = 5.0  #: between two looks of a worker that is told of new jobs
SOON_S = 0.05  #: what is due by then is waited for here, since a claim that waits in Redis takes one job only
BLOCKED_LOOK_S = 1.0  #: while jobs are due that stock workers run, or that have to wait for others to end
KEEP_ABORTS_S = 86_400  #: for jobs that are queued; those of jobs that had ended are left over
CLEANUP_MARGIN_S = 60  #: what a job past its time has before its lease is no longer renewed


class Worker(JobRunner):
    """Runs the jobs of one queue; takes every argument of ``arq.worker.Worker``, and these.

    :param backoff: wait between the tries of a job that raises; None fails it at once, as arq does
    :param retry_on: the exceptions that are tried again, with a ``backoff``; ``Retry`` and its kind always are
    :param rate_limit: jobs that begin in a time, over all replicas, such as ``"10/s"`` or ``RateLimit(10, 1)``
    :param global_concurrency: jobs of the queue that run at a time, over all replicas; 0 for any number
    :param replica: this process's name among the queue's replicas; host and process id by default
    :param version: of the app, for people to see in its health record
    :param on_beat: called about once a second for as long as the loop turns and Redis answers
    :param lease: seconds until the jobs of a worker that died are claimed by others
    :param blocked_log: seconds until an event loop that does not turn has its stack logged
    :param blocked_exit: seconds until one ends the process, with exit code 70
    """

    def __init__(
        self,
        functions: Sequence[Any] = (),
        *,
        rate_limit: RateLimit | str | None = None,
        global_concurrency: int = 0,
        replica: str | None = None,
        version: str | None = None,
        on_beat: Callable[[], object] | None = None,
        lease: float = 12,
        blocked_log: float = 2,
        blocked_exit: float = 120,
        **options: Any,
    ) -> None:
        super().__init__(functions, **options)
        self.rate_limit = RateLimit.parse(rate_limit) if isinstance(rate_limit, str) else rate_limit
        self.global_concurrency = global_concurrency
        self.replica = replica or f"{socket.gethostname()}-{os.getpid()}"
        self.version = version
        self.on_beat = on_beat
        self.lease_s = lease
        self.blocked_log_s = blocked_log
        self.blocked_exit_s = blocked_exit
        self._ends_s = self.in_progress_timeout_s + CLEANUP_MARGIN_S  # in which any job has ended for certain
        self._wake = asyncio.Event()  # for a look at the queue
        self._urgent = asyncio.Event()  # for a pulse before its time
        self._running = False
        self._behind = False  # slots are free, but too many ends wait to be stored
        self._dry = False  # the last look found nothing due, and nothing was queued or stored since it began
        self._idle_s = 0.0  # how long the next claim may wait in Redis; 0: it does not
        self._idled = False  # since it last could take no more
        self._failures = 0  # looks in a row that Redis refused
        self._unheard = False  # Redis may have taken a claim whose jobs we do not run
        self._pulsed = False  # cron jobs that were due when we began are enqueued
        self._told = False  # we heard of a job since the last look
        self._stop_at: float | None = None
        self._stated: str | None = None  # the state in the last health record; None: write it anew
        self._last_beat = 0.0
        self._started_at = time()

    # -- life ----------------------------------------------------------------------------------------------------

    async def startup(self) -> None:
        """Open what jobs need, in ``self.ctx``; runs before the first job. Extend it, and call ``super()`` first."""
        if self.on_startup:
            await self.on_startup(self.ctx)

    async def shutdown(self) -> None:
        """Close what ``startup`` opened; runs after the last job. Extend it, and call ``super()`` last."""
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)

    async def main(self) -> None:
        """Serve the queue until a signal, or in burst mode until no job is due."""
        if self._stop_at is not None:  # a signal came before its time
            return
        if not self._running:  # or this is another burst
            await self._open()
        self._dry = False
        pulse = asyncio.create_task(self._pulse())
        logger.info("serving %s as %s: %s", self.queue_name, self.replica, ", ".join(self.functions))
        try:
            await self._serve(pulse)
        finally:
            pulse.cancel()
            await asyncio.gather(pulse, return_exceptions=True)

    async def _open(self) -> None:
        if self._pool is None:
            self._pool = await connect(
                self.redis_settings,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
        await prepare(self.pool.connection_pool)
        self.ctx |= {"redis": self.pool, "replica": self.replica}
        await self.startup()
        self._wire = Wire(self.pool.connection_pool)
        self._listener = Listener(
            self.pool.connection_pool,
            self.queue_name,
            on_job=self._hear_of_job,
            on_abort=self._urgent.set,
            call=self._wire.call,
            ends=self.global_concurrency > 0,
            park_s=min(PARK_S, self.lease_s / RENEWALS_PER_LEASE),
        )
        self._scripts = self._make_scripts(self._wire.call)
        self._commits = Commits(self._scripts)
        self._peers = Peers(self.pool, self.queue_name)
        self._cron = Cron(self.pool, self.queue_name, self.replica, self.cron_jobs)
        self._keeper = Keeper(
            self.pool.connection_pool,
            self._make_scripts,
            leases=self._leases,
            lost=self._lose_from_thread,
            lease_s=self.lease_s,
            blocked_log_s=self.blocked_log_s,
            blocked_exit_s=self.blocked_exit_s,
            listens=lambda: self._listener.listening,
            bell=keys.bell(self.queue_name),
        )
        self._keeper.start()
        self._running = True

    def _make_scripts(self, call: Call) -> Scripts:
        return Scripts(
            call,
            self.queue_name,
            lease_s=self.lease_s,
            ends_s=self._ends_s,
            rate_limit=self.rate_limit,
            global_concurrency=self.global_concurrency,
        )

    async def close(self) -> None:
        """Give back what still runs, store what ended, leave the registry, run ``shutdown`` and close the pool."""
        if self._pool is None:
            return
        try:
            if self._running:
                await self._give_back()
                await self._sign_off()
        finally:
            try:
                await self.shutdown()
            except Exception:
                logger.exception("shutdown raised")
                if self._running:  # else that may come of a start that failed, which then is what counts
                    raise
            finally:
                with contextlib.suppress(*UNAVAILABLE):
                    await self.pool.aclose(close_connection_pool=True)
                self._pool = None
        if self._running:
            counts = (self.jobs_complete, self.jobs_failed, self.jobs_retried)
            logger.info("stopped: %d jobs complete, %d failed, %d retried", *counts)

    async def _give_back(self) -> None:
        self._stop_at = self._stop_at or monotonic()
        over_at = monotonic() + GIVE_BACK_S
        if self.main_task and not self.main_task.done():  # closed without a signal
            self.allow_pick_jobs = False
            self._look_now()
            await asyncio.wait([self.main_task], timeout=LAST_CALL_S)
            self.main_task.cancel()
            await asyncio.wait([self.main_task])
        if self.tasks:
            logger.warning("%d jobs go back to the queue: %s", len(self.tasks), ", ".join(self.tasks))
            for job_id in self.tasks:
                if run := self._runs.get(job_id):
                    run.interrupt(Cause.STOP)
            _, stuck = await asyncio.wait(set(self.tasks.values()), timeout=CANCEL_WAIT_S)
            for task in stuck:
                task.cancel()
            if stuck:
                _, stuck = await asyncio.wait(stuck, timeout=1)
            for run in list(self._runs.values()):
                if run.task in stuck and not run.settling:  # by then it has ended with its process
                    self._settle(run, Settlement.again(run.claim.lease, self.lease_s))
        if not await self._commits.flush(over_at - monotonic()):
            logger.error("ends of %d jobs could not be stored: they will run again", len(self._runs))
        if self._unheard:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout(max(0, over_at - monotonic())):
                    await self._recall()
        await self._commits.close()
        if self._hooks:
            await asyncio.wait(self._hooks, timeout=max(0, over_at - monotonic()))
        await self._keeper.stop()
        self._listener.close()
        self._wire.close()

    async def _sign_off(self) -> None:
        """Leave the registry; where that loses its connection, over another."""
        until = self.loop.time() + FORGET_S
        while self.loop.time() < until:
            with contextlib.suppress(*UNAVAILABLE):
                async with asyncio.timeout_at(until):
                    await health.forget(self.pool, self.queue_name, self.replica)
                    return
            await asyncio.sleep(FORGET_AGAIN_S)

    def handle_sig(self, signum: Signals) -> None:
        """First signal: drain for up to ``job_completion_wait`` seconds. Second: cancel what runs, at once.

        While ``startup`` runs, each cancels that.
        """
        if self._stop_at is None:
            self.allow_pick_jobs = False
            self._stop_at = monotonic() + self._job_completion_wait
            logger.info("%s: draining %d jobs, %ds at most", signum.name, len(self.tasks), self._job_completion_wait)
            self._urgent.set()
            if self.on_stop:
                try:
                    self.on_stop(signum)
                except Exception:
                    logger.exception("on_stop raised")
        else:
            self._stop_at = monotonic()
        if self._running:
            self._look_now()
        if self.main_task:
            # Once it serves it ends by itself, unless Redis leaves it without an answer.
            wait_s = self._stop_at - monotonic() + LAST_CALL_S if self._running else 0
            self.loop.call_later(wait_s, self.main_task.cancel)

    handle_sig_wait_for_completion = handle_sig

    # -- claiming ------------------------------------------------------------------------------------------------

    async def _serve(self, pulse: asyncio.Task[None]) -> None:
        while not self._is_over():
            self._commits.check()
            self._keeper.check()
            if pulse.done():
                pulse.result()
            try:
                if self._failures:
                    await self._recover()
                if self._stated is None:
                    await self.record_health()  # before the first claim: others go by it
                wait_s = await self._look()
            except UNAVAILABLE as error:
                self._failures += 1
                self._stated = None
                wait_s = RECONNECT.delay(self._failures)
                logger.warning("Redis is unavailable (%s), next look in %.1fs", error or type(error).__name__, wait_s)
                await self._pause(wait_s)
                continue
            self._failures = 0
            if not (self._is_over() or self._idle_s):
                await self._nap(wait_s)
        with contextlib.suppress(*UNAVAILABLE):
            async with asyncio.timeout(LAST_CALL_S):
                await self._listener.unlisten()

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
            self._settle(run, Settlement.again(claim.lease, max(BLOCKED_LOOK_S, self._peers.leave())))
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

    # -- health -------------------------------------------------------------------------------------------------

    async def _pulse(self) -> None:
        said = ""
        while not cancelled():
            try:
                await self.record_health()
                await self._beat()
                if self.allow_abort_jobs and self.tasks:
                    await self._interrupt_aborted()
                await self.heart_beat()  # last, since of all this a full Redis refuses cron jobs alone
                said = ""
                if not self._pulsed:
                    self._pulsed, self._dry = True, False
                    self._wake.set()
            except UNAVAILABLE as error:
                if said != str(error) and not self._failures:  # of which the main loop tells
                    logger.warning("health, aborts and cron jobs wait for Redis (%s)", error or type(error).__name__)
                said = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), PULSE_S)
            self._urgent.clear()

    async def _beat(self) -> None:
        if self.on_beat and not self._failures and monotonic() - self._last_beat >= BEAT_EVERY_S:
            await self.pool.ping()
            self._last_beat = monotonic()
            try:
                self.on_beat()
            except Exception:  # whoever waits for the beat acts; jobs are none the worse for it
                logger.exception("on_beat raised")

    async def record_health(self) -> None:
        """Write this replica's record, every ``health_check_interval`` seconds and when a drain begins."""
        stated = "running" if self._stop_at is None else "draining"
        if stated == self._stated and monotonic() - self._last_health_check < self.health_check_interval:
            return
        state = {
            "state": stated,
            "version": self.version,
            "functions": list(self.functions),
            "pid": os.getpid(),
            "started_at": self._started_at,
            "max_jobs": self.max_jobs,
            "running": len(self.tasks),
            "complete": self.jobs_complete,
            "failed": self.jobs_failed,
            "retried": self.jobs_retried,
        }
        await health.record(
            self.pool,
            self.queue_name,
            self.replica,
            state,
            interval_s=self.health_check_interval,
        )
        self._last_health_check, self._stated = monotonic(), stated
        await self.pool.zremrangebyscore(keys.ABORT, "-inf", (time() - KEEP_ABORTS_S) * 1000)

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:
        if self.allow_pick_jobs:
            await self._cron.enqueue_due(n, timedelta(seconds=delay * num_windows))
