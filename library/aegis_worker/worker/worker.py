"""The worker, from its start to its stop.

It keeps arq's arguments, functions, cron jobs and wire format, and replaces how jobs are claimed, run and ended. Three
things go on at a time: ``JobClaimer`` claims jobs for the slots that are free, ``JobRunner`` runs each in a task of its
own, and ``Commits`` stores how they ended. ``Keeper`` renews the leases from a thread, ``Listener`` has Redis tell of
new jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from signal import Signals
from time import monotonic, time
from typing import Any

from aegis_worker.queue import keys, replicas
from aegis_worker.queue.policies import RateLimit
from aegis_worker.queue.scripts import RECONNECT, RENEWALS_PER_LEASE, UNAVAILABLE, Call, Scripts, cancelled
from aegis_worker.queue.settlement import Retried
from aegis_worker.redis.connection import connect, prepare
from aegis_worker.redis.wire import Wire
from aegis_worker.worker.claimer import JobClaimer
from aegis_worker.worker.commits import Commits
from aegis_worker.worker.cron import Cron
from aegis_worker.worker.execution import Cause
from aegis_worker.worker.keeper import Keeper
from aegis_worker.worker.options import attributes, parameters
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.wake import PARK_S, Listener

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
KEEP_ABORTS_S = 86_400  #: for jobs that are queued; those of jobs that had ended are left over


class Worker(JobClaimer):
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
        self.blocked_log_s = blocked_log
        self.blocked_exit_s = blocked_exit
        self._urgent = asyncio.Event()  # for a pulse before its time
        self._running = False
        self._failures = 0  # looks in a row that Redis refused
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
                    self._settle(run, Retried(run.claim.lease, int(self.lease_s * 1000)))
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
                    await replicas.forget(self.pool, self.queue_name, self.replica)
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
        await replicas.record(
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


def create_worker(settings_cls: type, **options: Any) -> Worker:
    """Make a worker of a stock ``WorkerSettings`` class, as ``arq.worker.create_worker`` does.

    Attributes that are no option of a worker are ignored; ``options`` win over the class.
    """
    known = parameters(Worker)
    return Worker(**{name: value for name, value in attributes(settings_cls).items() if name in known} | options)


def run_worker(settings_cls: type, **options: Any) -> Worker:
    """Serve the queue of a ``WorkerSettings`` class until a signal, as ``arq.run_worker`` does; return the worker."""
    worker = create_worker(settings_cls, **options)
    worker.run()
    return worker
