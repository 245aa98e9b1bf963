"""The worker: an ``arq.worker.Worker`` with a life of its own between start and stop.

It keeps arq's arguments, functions, cron jobs and wire format, and replaces how jobs are claimed, run and ended:
each step is one script in ``lua/``, so that it happens whole or not at all, and only for the worker whose token
marks the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from signal import Signals
from time import monotonic, time
from typing import Any
from uuid import uuid4

import arq.worker
from arq.connections import create_pool
from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import SerializationError, serialize_result
from arq.utils import ms_to_datetime, timestamp_ms
from arq.worker import Function, JobExecutionFailed
from redis.commands.core import AsyncScript
from redis.exceptions import BusyLoadingError, ConnectionError, OutOfMemoryError, ReadOnlyError, TimeoutError

from . import health, keys
from .context import RunningJob, current_job
from .execution import Again, Claim, Ended, Job, attempt, decide, read
from .retry import Backoff

if not version("arq").startswith("0.28."):
    raise ImportError(f"this runtime is written against arq 0.28, not {version('arq')}: its internals differ")

logger = logging.getLogger(__name__)

#: What Redis answers, or does not, while it restarts, loads, fails over or is full: it passes, so we wait.
UNAVAILABLE = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, OSError)
RECONNECT = Backoff(base=0.5, limit=5)
CANCEL_WAIT_S = 5.0  #: what a cancelled job has to clean up before the process ends without it
KEEP_TRIES_S = 88_400  #: as arq does: a little longer than a job's own day
BEAT_EVERY_S = 1.0

_LUA = Path(__file__).with_name("lua")


class Worker(arq.worker.Worker):
    """Runs the jobs of one queue; takes every argument of ``arq.worker.Worker``, and these.

    :param backoff: wait between the tries of a job that raises; None fails it at once, as arq does
    :param replica: this process's name among the queue's replicas; the host's name by default
    :param on_beat: called about once a second for as long as the loop turns and Redis answers
    """

    def __init__(
        self,
        functions: Sequence[Any] = (),
        *,
        backoff: Backoff | None = None,
        replica: str | None = None,
        on_beat: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(functions, **options)
        self.backoff = backoff
        self.replica = replica or socket.gethostname()
        self.on_beat = on_beat
        self._token = uuid4().hex
        self._scripts: dict[str, AsyncScript] = {}
        self._wake = asyncio.Event()
        self._running = False
        self._stop_at: float | None = None
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
        if self._pool is None:
            self._pool = await create_pool(
                self.redis_settings,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
        self.ctx |= {"redis": self.pool, "replica": self.replica}
        self._scripts = {path.stem: self.pool.register_script(path.read_bytes()) for path in _LUA.glob("*.lua")}
        await self.startup()
        self._running = True
        logger.info("serving %s as %s: %s", self.queue_name, self.replica, ", ".join(self.functions))
        failures = 0
        while not await self._is_over():
            try:
                await self._poll_iteration()
            except UNAVAILABLE as error:
                failures += 1
                wait = RECONNECT.delay(failures)
                logger.warning("Redis is unavailable (%s), next look in %.1fs", error or type(error).__name__, wait)
                await asyncio.sleep(wait)
                continue
            failures = 0
            await self._nap()

    async def close(self) -> None:
        """Give back what still runs, leave the registry, run ``shutdown`` and close the pool."""
        if self._pool is None:
            return
        try:
            await self._give_back()
            with contextlib.suppress(*UNAVAILABLE):
                await health.forget(self.pool, self.queue_name, self.replica)
        finally:
            await self.shutdown()
            await self.pool.aclose(close_connection_pool=True)
            self._pool = None
        if self._running:
            counts = (self.jobs_complete, self.jobs_failed, self.jobs_retried)
            logger.info("stopped: %d jobs complete, %d failed, %d retried", *counts)

    def handle_sig(self, signum: Signals) -> None:
        """First signal: drain for up to ``job_completion_wait`` seconds. Second: cancel what runs, at once."""
        if self._stop_at is None:
            self.allow_pick_jobs = False
            self._stop_at = monotonic() + self._job_completion_wait
            logger.info("%s: draining %d jobs, %ds at most", signum.name, len(self.tasks), self._job_completion_wait)
            self._last_health_check = 0
            if self.on_stop:
                self.on_stop(signum)
        else:
            self._stop_at = monotonic()
            if not self._running and self.main_task:
                self.main_task.cancel()
        self._wake.set()

    handle_sig_wait_for_completion = handle_sig

    async def _is_over(self) -> bool:
        if self._stop_at is not None:
            return not self.tasks or monotonic() >= self._stop_at
        if not self.burst or self.tasks:
            return False
        if 0 <= self.max_burst_jobs <= self._jobs_started():
            return True
        return not await self.pool.zcount(self.queue_name, "-inf", timestamp_ms())

    async def _nap(self) -> None:
        """Sleep until the next poll; a job's end or a signal cuts it short."""
        wait = self.poll_delay_s
        if self._stop_at is not None:
            wait = max(0, min(wait, self._stop_at - monotonic()))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait)
        self._wake.clear()

    async def _give_back(self) -> None:
        self._stop_at = self._stop_at or monotonic()
        running = set(self.tasks.values())
        if not running:
            return
        logger.warning("%d jobs go back to the queue: %s", len(running), ", ".join(self.tasks))
        for task in self.job_tasks.values():
            task.cancel()
        _, stuck = await asyncio.wait(running, timeout=CANCEL_WAIT_S)
        for task in stuck:
            task.cancel()

    # -- one turn of the loop ------------------------------------------------------------------------------------

    async def _poll_iteration(self) -> None:
        await self._claim()
        if self.allow_abort_jobs and self.job_tasks:
            await self._cancel_aborted_jobs()
        await self.heart_beat()
        if self.on_beat and monotonic() - self._last_beat >= BEAT_EVERY_S:
            self.on_beat()
            self._last_beat = monotonic()

    async def _claim(self) -> None:
        free = self.max_jobs - len(self.tasks)
        if self.burst and self.max_burst_jobs >= 0:
            free = min(free, self.max_burst_jobs - self._jobs_started())
        if not self.allow_pick_jobs or free <= 0:
            return
        claimed = await self._scripts["claim"](
            keys=[self.queue_name, keys.paused(self.queue_name), keys.ABORT],
            args=[
                timestamp_ms(),
                free,
                self._token,
                int(self.in_progress_timeout_s * 1000),
                KEEP_TRIES_S,
                keys.IN_PROGRESS,
                keys.JOB,
                keys.RETRY,
            ],
        )
        for job_id, due, tries, aborted, *payload in claimed:
            claim = Claim(job_id.decode(), int(float(due)), tries, bool(aborted), payload[0] if payload else None)
            task = self.loop.create_task(self._run(claim))
            self.tasks[claim.job_id] = task
            task.add_done_callback(partial(self._ended, claim.job_id))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self.tasks[job_id]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            logger.critical("job %s ended outside its bounds", job_id, exc_info=error)

    async def _cancel_aborted_jobs(self) -> None:
        asked = {job_id.decode() for job_id in await self.pool.zrange(keys.ABORT, 0, -1)}
        if ours := asked & self.job_tasks.keys():
            self.aborting_tasks |= ours
            for job_id in ours:
                self.job_tasks[job_id].cancel()
            await self.pool.zrem(keys.ABORT, *ours)

    async def record_health(self) -> None:
        """Write this replica's record, every ``health_check_interval`` seconds and when a drain begins."""
        now = time()
        if now - self._last_health_check < self.health_check_interval:
            return
        state = {
            "state": "running" if self._stop_at is None else "draining",
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
            now_ms=int(now * 1000),
            interval_s=self.health_check_interval,
        )
        self._last_health_check = now

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:
        if self.allow_pick_jobs:
            await super().run_cron(n, delay, num_windows)

    # -- one job -------------------------------------------------------------------------------------------------

    async def _run(self, claim: Claim) -> None:
        """Carry a claimed job to its end, or back to its queue."""
        started_ms = timestamp_ms()
        job = Job(tries=claim.tries)
        try:
            job = read(claim, self.job_deserializer)
            function = self._function_for(job, claim)
        except (JobExecutionFailed, SerializationError, asyncio.CancelledError) as refusal:
            self._set_context(claim, job)
            logger.warning("not run: %s", refusal or "aborted before it started")
            await self._finish(claim, job, Ended(False, refusal), started_ms, None)
            return

        self._set_context(claim, job)
        ctx = {
            **self.ctx,
            "job_id": claim.job_id,
            "job_try": job.tries,
            "enqueue_time": ms_to_datetime(job.enqueued_ms),
            "score": claim.due_ms,
        }
        await self._call_hook("on_job_start", ctx)
        started_ms = timestamp_ms()
        logger.info("started, %.3fs after it was due", (started_ms - claim.due_ms) / 1000)
        outcome = await self._try(claim, job, function, ctx)
        await self._call_hook("on_job_end", ctx)
        if isinstance(outcome, Ended):
            await self._finish(claim, job, outcome, started_ms, function)
        else:
            await self._release(claim, outcome, (timestamp_ms() - started_ms) / 1000)
        await self._call_hook("after_job_end", ctx)

    def _function_for(self, job: Job, claim: Claim) -> Function | CronJob:
        if claim.aborted:
            raise asyncio.CancelledError
        if job.function not in self.functions:
            raise JobExecutionFailed(f"function {job.function!r} not found")
        function = self.functions[job.function]
        if job.tries > self._max_tries(function):
            raise JobExecutionFailed(f"max {self._max_tries(function)} retries exceeded")
        return function

    async def _try(self, claim: Claim, job: Job, function: Function | CronJob, ctx: dict[Any, Any]) -> Ended | Again:
        timeout_s = self.job_timeout_s if function.timeout_s is None else function.timeout_s
        task = self.loop.create_task(function.coroutine(ctx, *job.args, **job.kwargs))
        self.job_tasks[claim.job_id] = task
        try:
            outcome = await attempt(task, timeout_s)
        finally:
            del self.job_tasks[claim.job_id]
        if isinstance(outcome, Ended):
            return outcome
        if isinstance(outcome, asyncio.CancelledError):
            if claim.job_id in self.aborting_tasks:
                self.aborting_tasks.remove(claim.job_id)
                return Ended(False, outcome)
            if self._stop_at is not None:
                return Again(counts=False)
        decision = decide(outcome, job.tries, self._max_tries(function), self.backoff, retry_jobs=self.retry_jobs)
        if isinstance(decision, Again):
            logger.warning("try %d failed, again in %.1fs: %r", job.tries, decision.wait_s, outcome)
        else:
            logger.error("failed: %r", outcome, exc_info=outcome)
        return decision

    async def _finish(
        self, claim: Claim, job: Job, end: Ended, started_ms: int, function: Function | CronJob | None
    ) -> None:
        finished_ms = timestamp_ms()
        keep_s, forever = self.keep_result_s, self.keep_result_forever
        if function is not None:
            keep_s = function.keep_result_s if function.keep_result_s is not None else keep_s
            forever = function.keep_result_forever if function.keep_result_forever is not None else forever
        result = None
        if forever or keep_s:
            result = serialize_result(
                job.function,
                job.args,
                job.kwargs,
                job.tries,
                job.enqueued_ms,
                end.success,
                end.result,
                started_ms,
                finished_ms,
                f"{claim.job_id}:{job.function}",
                self.queue_name,
                claim.job_id,
                serializer=self.job_serializer,
            )
        stored = await self._until_taken(
            self._scripts["finish"],
            keys=[
                self.queue_name,
                keys.JOB + claim.job_id,
                keys.IN_PROGRESS + claim.job_id,
                keys.RETRY + claim.job_id,
                keys.RESULT + claim.job_id,
                keys.ABORT,
            ],
            args=[
                claim.job_id,
                self._token,
                result or b"",
                0 if forever else int(keep_s * 1000),
                int(keep_cronjob_progress * 1000) if isinstance(function, CronJob) else 0,
            ],
        )
        if not stored:
            logger.warning("the claim was lost: another worker has the job, its result stands")
        elif end.success:
            self.jobs_complete += 1
            logger.info("done in %.3fs", (finished_ms - started_ms) / 1000)
        else:
            self.jobs_failed += 1

    async def _release(self, claim: Claim, again: Again, ran_s: float) -> None:
        due = timestamp_ms() + int(again.wait_s * 1000) if again.counts else ""
        await self._until_taken(
            self._scripts["release"],
            keys=[self.queue_name, keys.IN_PROGRESS + claim.job_id, keys.RETRY + claim.job_id],
            args=[claim.job_id, self._token, due, int(again.counts)],
        )
        self.jobs_retried += 1
        if not again.counts:
            logger.info("given back after %.3fs, its try does not count", ran_s)

    async def _until_taken(self, script: AsyncScript, *, keys: list[str], args: list[Any]) -> bool:
        """Run a script that ends a claim until Redis has taken it; return whether the claim was still ours."""
        failures = 0
        while True:
            try:
                return bool(await script(keys=keys, args=args))
            except UNAVAILABLE as error:
                failures += 1
                logger.warning("Redis is unavailable (%s), the result waits", error or type(error).__name__)
                await asyncio.sleep(RECONNECT.delay(failures) + random.random() / 10)

    def _max_tries(self, function: Function | CronJob) -> int:
        return self.max_tries if function.max_tries is None else function.max_tries

    def _set_context(self, claim: Claim, job: Job) -> None:
        current_job.set(RunningJob(claim.job_id, keys.short_name(self.queue_name), job.function, job.tries))

    async def _call_hook(self, name: str, ctx: dict[Any, Any]) -> None:
        """Call a job's hook; what it raises is logged, and neither ends the worker nor changes the job's end."""
        hook = getattr(self, name)
        if hook is None:
            return
        try:
            await hook(ctx)
        except Exception:
            logger.exception("%s raised", name)
