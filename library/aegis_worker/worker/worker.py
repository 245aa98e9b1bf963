"""The worker, from its start to its stop.

It keeps the arguments, functions, cron jobs and wire format of arq, and replaces how jobs are claimed, run and settled.
It is the only subclass of arq's worker, and connects the parts. ``Intake`` claims jobs for the free slots. ``Runner``
runs each job in its own asyncio task, with an ``Executor``. ``Commits`` stores how jobs ended. ``Keeper`` renews the
leases in a thread. ``Listener`` waits for new jobs. ``Pulse`` does what a worker does twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timezone as Timezone
from importlib.metadata import version as version_of
from math import inf
from signal import Signals
from time import monotonic, time
from typing import Any

import arq.worker
from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name
from arq.constants import expires_extra_ms as a_day_ms
from arq.cron import CronJob
from arq.jobs import Deserializer, Serializer
from arq.typing import SecondsTimedelta, StartupShutdown, WorkerCoroutine
from arq.worker import Function

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff, RateLimit
from aegis_worker.queue.scripts import RECONNECT, RENEWALS_PER_LEASE, UNAVAILABLE, Call, Scripts
from aegis_worker.queue.settlement import Lease
from aegis_worker.redis.connection import connect, prepare
from aegis_worker.redis.wire import Wire
from aegis_worker.worker.commits import Commits
from aegis_worker.worker.cron import Cron
from aegis_worker.worker.executor import Executor
from aegis_worker.worker.idle import Park
from aegis_worker.worker.intake import Intake
from aegis_worker.worker.keeper import Keeper
from aegis_worker.worker.outcome import NO_TIMEOUT_S, RetryOn
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.phase import Life, Phase
from aegis_worker.worker.pulse import Health, Pulse
from aegis_worker.worker.runner import Runner
from aegis_worker.worker.wake import PARK_S, Listener

if not version_of("arq").startswith("0.28."):
    raise ImportError(f"aegis_worker needs arq 0.28, because it uses internals of it; this is arq {version_of('arq')}")

logger = logging.getLogger(__name__)

#: Longest interval of health records. With the hour of arq, a replica that died would count as alive for three hours.
MOST_INTERVAL_S = 60.0
CLEANUP_MARGIN_S = 60  #: after its timeout, a job has so long to clean up; then its lease is no longer renewed
# Limits after the drain. Together they are less than the `STOP_MARGIN_S` of the settings.
LAST_REPLY_S = 1.0  #: for the reply to a call that Redis has not answered yet
GIVE_BACK_S = 7.0  #: for running jobs to clean up, and for storing their ends


#: Methods of arq's worker that our worker does not call. To override them has no effect.
NOT_CALLED = {"finish_failed_job", "finish_job", "heart_beat", "record_health", "run_cron", "run_job", "start_jobs"}


@dataclass(slots=True)
class Parts:
    """The parts of a worker that has connected."""

    wire: Wire
    listener: Listener
    commits: Commits
    keeper: Keeper
    runner: Runner
    intake: Intake
    health: Health
    pulse: Pulse


class Worker(arq.worker.Worker):
    """Runs the jobs of one queue. It takes every argument of ``arq.worker.Worker``, and more.

    Three arguments of arq have no effect: ``queue_read_limit``, because a claim reads only the jobs that it takes,
    ``health_check_key``, because each replica has its own key, and ``log_results``.

    :param backoff: the wait before a failed job is tried again; with None it is not tried again, as in arq
    :param retry_on: the exceptions that are tried again with a ``backoff``; ``Retry`` and ``RetryJob`` always are
    :param rate_limit: most jobs that begin in a time, over all replicas, such as ``"10/s"`` or ``RateLimit(10, 1)``
    :param global_concurrency: most jobs of the queue that run at a time, over all replicas; 0 for no limit
    :param replica: the name of this process among the replicas of the queue; by default host and process id
    :param version: the version of the app, for the health record
    :param on_beat: called about once a second while the event loop turns and Redis answers
    :param lease: seconds until other workers claim the jobs of a worker that died
    :param blocked_log: seconds until the stack of a blocked event loop is logged
    :param blocked_exit: seconds until a blocked event loop ends the process, with exit code 70
    """

    def __init__(
        self,
        functions: Sequence[Function | WorkerCoroutine] = (),
        *,
        queue_name: str | None = default_queue_name,
        cron_jobs: Sequence[CronJob] | None = None,
        redis_settings: RedisSettings | None = None,
        redis_pool: ArqRedis | None = None,
        burst: bool = False,
        on_startup: StartupShutdown | None = None,
        on_shutdown: StartupShutdown | None = None,
        on_job_start: StartupShutdown | None = None,
        on_job_end: StartupShutdown | None = None,
        after_job_end: StartupShutdown | None = None,
        handle_signals: bool = True,
        job_completion_wait: int = 0,
        max_jobs: int = 10,
        job_timeout: SecondsTimedelta | None = 300,
        keep_result: SecondsTimedelta = 3600,
        keep_result_forever: bool = False,
        poll_delay: SecondsTimedelta = 0.5,
        queue_read_limit: int | None = None,
        max_tries: int = 5,
        health_check_interval: SecondsTimedelta = 3600,
        health_check_key: str | None = None,
        ctx: dict[Any, Any] | None = None,
        retry_jobs: bool = True,
        allow_abort_jobs: bool = False,
        max_burst_jobs: int = -1,
        job_serializer: Serializer | None = None,
        job_deserializer: Deserializer | None = None,
        expires_extra_ms: int = a_day_ms,
        timezone: Timezone | None = None,
        log_results: bool = True,
        backoff: Backoff | None = None,
        retry_on: RetryOn = Exception,
        rate_limit: RateLimit | str | None = None,
        global_concurrency: int = 0,
        replica: str | None = None,
        version: str | None = None,
        on_beat: Callable[[], object] | None = None,
        lease: float = 12,
        blocked_log: float = 2,
        blocked_exit: float = 120,
    ) -> None:
        super().__init__(
            functions,
            queue_name=queue_name,
            cron_jobs=cron_jobs,
            redis_settings=redis_settings,
            redis_pool=redis_pool,
            burst=burst,
            on_startup=on_startup,
            on_shutdown=on_shutdown,
            on_job_start=on_job_start,
            on_job_end=on_job_end,
            after_job_end=after_job_end,
            handle_signals=handle_signals,
            job_completion_wait=job_completion_wait,
            max_jobs=max_jobs,
            job_timeout=NO_TIMEOUT_S if job_timeout is None else job_timeout,  # arq needs a number to compare
            keep_result=keep_result,
            keep_result_forever=keep_result_forever,
            poll_delay=poll_delay,
            queue_read_limit=queue_read_limit,
            max_tries=max_tries,
            health_check_interval=health_check_interval,
            health_check_key=health_check_key,
            ctx=ctx,
            retry_jobs=retry_jobs,
            allow_abort_jobs=allow_abort_jobs,
            max_burst_jobs=max_burst_jobs,
            job_serializer=job_serializer,
            job_deserializer=job_deserializer,
            expires_extra_ms=expires_extra_ms,
            timezone=timezone,
            log_results=log_results,
        )
        if job_timeout is None:
            self.job_timeout_s = inf
        self.backoff = backoff
        self.retry_on = retry_on
        self.rate_limit = RateLimit.parse(rate_limit) if isinstance(rate_limit, str) else rate_limit
        self.global_concurrency = global_concurrency
        self.replica = replica or f"{socket.gethostname()}-{os.getpid()}"
        self.version = version
        self.on_beat = on_beat
        self.lease_s = lease
        self.blocked_log_s = blocked_log
        self.blocked_exit_s = blocked_exit
        self._ends_s = self.in_progress_timeout_s + CLEANUP_MARGIN_S  # in which any job must have ended
        self._life = Life()
        self._parts: Parts | None = None
        self._wake = asyncio.Event()  # it is time to poll
        self._failures = 0  # polls in a row that failed
        self._started_at = time()
        for name in sorted(NOT_CALLED):
            if getattr(type(self), name) is not getattr(arq.worker.Worker, name):
                logger.warning("%s.%s has no effect: this worker does not call it", type(self).__name__, name)

    # -- life ----------------------------------------------------------------------------------------------------

    async def startup(self) -> None:
        """Open what jobs share, in ``self.ctx``. Runs before the first job. Override it, and call ``super()`` first."""
        if self.on_startup:
            await self.on_startup(self.ctx)

    async def shutdown(self) -> None:
        """Close what ``startup`` opened. Runs after the last job. Override it, and call ``super()`` last."""
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)

    async def main(self) -> None:
        """Serve the queue until a signal, or in burst mode until no job is due.

        It does nothing after a signal, or if the worker has served and was closed.
        """
        if self._life.stopping:
            return
        if self._parts is None:  # else this is another burst
            self._life.enter(Phase.OPENING)
            self._parts = await self._open()
        if not self._life.stopping:
            self._life.enter(Phase.SERVING)
        self._parts.intake.exhausted = False
        pulse = asyncio.create_task(self._parts.pulse.run())
        logger.info("serving %s as %s: %s", self.queue_name, self.replica, ", ".join(self.functions))
        try:
            await self._serve(self._parts, pulse)
        finally:
            pulse.cancel()
            await asyncio.gather(pulse, return_exceptions=True)

    async def _open(self) -> Parts:
        if self._pool is None:
            self._pool = await connect(
                self.redis_settings,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
        pool, connections = self._pool, self._pool.connection_pool
        await prepare(connections)
        self.ctx["redis"] = pool
        await self.startup()
        if self._pool is None:
            raise RuntimeError("the worker was closed while it started")
        wire = Wire(connections)
        scripts = self._make_scripts(wire.call)
        commits = Commits(scripts)
        peers = Peers(pool, self.queue_name)
        runner = Runner(
            Executor(self, pool, peers),
            commits,
            peers,
            self,
            ends_s=self._ends_s,
            on_free=self._wake.set,
            on_stored=self._end_stored,
        )
        health = Health(
            pool,
            self.queue_name,
            self.replica,
            interval_s=min(self.health_check_interval, MOST_INTERVAL_S),
            state=self._describe,
        )
        pulse = Pulse(
            self,
            pool,
            health,
            runner,
            Cron(pool, self.queue_name, self.replica, self.cron_jobs),
            available=lambda: self._failures == 0,
            on_first=self._poll_again,
        )
        listener = Listener(
            connections,
            self.queue_name,
            on_job=self._notified,
            on_abort=pulse.hurry,
            call=wire.call,
            ends=self.global_concurrency > 0,
            park_s=min(PARK_S, self.lease_s / RENEWALS_PER_LEASE),
        )
        keeper = Keeper(
            connections,
            self._make_scripts,
            leases=runner.runs.leases,
            lost=self._lost_in_thread,
            lease_s=self.lease_s,
            blocked_log_s=self.blocked_log_s,
            blocked_exit_s=self.blocked_exit_s,
            listens=lambda: listener.listening,
            bell=keys.bell(self.queue_name),
        )
        intake = Intake(
            self,
            scripts,
            listener,
            keeper,
            runner,
            peers,
            startable=self._burst_left,
            lease_s=self.lease_s,
        )
        keeper.start()
        return Parts(wire, listener, commits, keeper, runner, intake, health, pulse)

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
        """Give running jobs back, store the ends of others, leave the registry, run ``shutdown``, close the pool."""
        if self._pool is None:
            return
        parts = self._parts
        try:
            if parts:
                await self._stop(parts)
                await parts.health.forget()
        finally:
            try:
                await self.shutdown()
            except Exception:
                logger.exception("shutdown raised")
                if parts:  # else the start has failed, and its error is more important
                    raise
            finally:
                with contextlib.suppress(*UNAVAILABLE):
                    await self.pool.aclose(close_connection_pool=True)
                self._pool = None
                if parts or self._life.stopping:
                    self._life.enter(Phase.CLOSED)
                else:
                    self._life = Life()  # it never served, and may start again
        if parts:
            counts = (self.jobs_complete, self.jobs_failed, self.jobs_retried)
            logger.info("stopped: %d jobs complete, %d failed, %d retried", *counts)

    async def _stop(self, parts: Parts) -> None:
        """End the main loop, give back the jobs that run, and store all ends, in little more than ``GIVE_BACK_S``."""
        if not self._life.stopping:
            self._life.drain(0)
        self._life.enter(Phase.CLOSING)
        until = monotonic() + GIVE_BACK_S
        if self.main_task and not self.main_task.done():  # closed without a signal
            self.allow_pick_jobs = False
            self._poll_now(parts)
            await asyncio.wait([self.main_task], timeout=LAST_REPLY_S)
            self.main_task.cancel()
            await asyncio.wait([self.main_task])
        await parts.runner.stop(self.lease_s, until)
        with contextlib.suppress(*UNAVAILABLE):
            async with asyncio.timeout(max(0, until - monotonic())):
                await parts.intake.close()
        await parts.commits.close()
        await parts.runner.stop_hooks(until)
        await parts.keeper.stop()
        parts.listener.close()
        parts.wire.close()

    def handle_sig(self, signum: Signals) -> None:
        """Handle a signal.

        The first signal drains the worker for at most ``job_completion_wait`` seconds. The second one cancels the
        running jobs at once. While ``startup`` runs, any signal cancels it.
        """
        self.allow_pick_jobs = False
        if self._life.drain(self._job_completion_wait):
            logger.info("%s: draining %d jobs, %ds at most", signum.name, len(self.tasks), self._job_completion_wait)
            if self._parts:
                self._parts.pulse.hurry()
            if self.on_stop:
                try:
                    self.on_stop(signum)
                except Exception:
                    logger.exception("on_stop raised")
        if self._parts:
            self._poll_now(self._parts)
        if self.main_task:
            # The main loop ends by itself. It is cancelled later in case Redis does not answer.
            wait_s = self._life.drain_ends - monotonic() + LAST_REPLY_S if self._parts else 0
            self.loop.call_later(wait_s, self.main_task.cancel)

    handle_sig_wait_for_completion = handle_sig

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _serve(self, parts: Parts, pulse: asyncio.Task[None]) -> None:
        while not self._is_over(parts):
            parts.commits.check()
            parts.keeper.check()
            if pulse.done():
                pulse.result()
            try:
                if self._failures:
                    await parts.intake.recover()
                if not parts.health.written:
                    await parts.health.record()  # before the first claim, because other replicas read it
                following = await parts.intake.poll()
            except UNAVAILABLE as error:
                self._failures += 1
                parts.health.invalidate()
                wait_s = RECONNECT.delay(self._failures)
                logger.warning("Redis is unavailable (%s), next try in %.1fs", error or type(error).__name__, wait_s)
                await self._pause(parts, wait_s)
                continue
            self._failures = 0
            if not (self._is_over(parts) or isinstance(following, Park)):
                await self._sleep(following.wait_s)
        with contextlib.suppress(*UNAVAILABLE):
            async with asyncio.timeout(LAST_REPLY_S):
                await parts.listener.unlisten()

    def _is_over(self, parts: Parts) -> bool:
        if self._life.stopping:
            return not self.tasks or self._life.drained
        if not (self.burst and parts.pulse.complete and parts.runner.done):
            return False
        return parts.intake.exhausted or self._burst_left() <= 0

    def _burst_left(self) -> float:
        """Return how many more jobs this worker may start in burst mode."""
        if not (self.burst and self.max_burst_jobs >= 0 and self._parts):
            return inf
        return self.max_burst_jobs - self._jobs_started()

    async def _sleep(self, wait_s: float) -> None:
        """Wait for at most ``wait_s`` seconds. The end of a job, a new job or a signal ends the wait."""
        if self._life.stopping:
            wait_s = max(0, min(wait_s, self._life.drain_ends - monotonic()))
        if not self._wake.is_set():
            timer = self.loop.call_later(wait_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
        else:
            await asyncio.sleep(0)  # more jobs may end now, and one claim fills all their slots
        self._wake.clear()

    async def _pause(self, parts: Parts, wait_s: float) -> None:
        """Wait for ``wait_s`` seconds, or until the worker may end."""
        until = monotonic() + wait_s
        while (left_s := until - monotonic()) > 0 and not self._is_over(parts):
            await self._sleep(left_s)

    def _poll_now(self, parts: Parts) -> None:
        self._wake.set()
        parts.listener.wake()

    def _poll_again(self) -> None:
        """Poll, because a job may have become due."""
        if self._parts:
            self._parts.intake.exhausted = False
        self._wake.set()

    def _notified(self) -> None:
        """Poll at once: a job was enqueued, and no claim of this worker waits for the bell."""
        if self._parts:
            self._parts.intake.notify()
        self._wake.set()

    def _end_stored(self) -> None:
        if parts := self._parts:
            parts.intake.exhausted = False  # a job that is tried again may be due
            if self.burst or parts.intake.store_full:
                self._wake.set()

    def _lost_in_thread(self, leases: list[Lease]) -> None:
        if self._parts:
            self.loop.call_soon_threadsafe(self._parts.runner.runs.lose, leases)

    def _describe(self) -> dict[str, Any]:
        """Return the content of the health record."""
        return {
            "state": "draining" if self._life.stopping else "running",
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
