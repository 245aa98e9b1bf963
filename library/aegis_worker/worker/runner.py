"""Runs claimed jobs, each in its own asyncio task, until Redis has stored how they ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any, Protocol

from redis.asyncio import Redis

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Claim
from aegis_worker.queue.settlement import Reply, Retried
from aegis_worker.worker.commits import MOST_JOBS, Commits
from aegis_worker.worker.executor import Ending, Executor
from aegis_worker.worker.idle import BLOCKED_POLL_S
from aegis_worker.worker.outcome import Expired, Requeued
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.runs import Cause, Run, Runs

logger = logging.getLogger(__name__)

CANCEL_WAIT_S = 5.0  #: time for a cancelled job to clean up, before the process ends without it


class WorkerState(Protocol):
    """The attributes of the worker that a runner reads and changes. They are arq's."""

    max_jobs: int
    tasks: dict[str, asyncio.Task[Any]]
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int


class Runner:
    """Holds the runs from their claim to their end.

    :param state: how many jobs may run, how many have ended, and the asyncio tasks of those that run
    :param ends_s: seconds after a claim in which any job must have ended; then its lease is no longer renewed
    :param on_free: called when a job, or a hook that runs after it, has freed a slot
    :param on_stored: called when Redis has stored the end of a job
    """

    def __init__(
        self,
        executor: Executor,
        commits: Commits,
        peers: Peers,
        state: WorkerState,
        *,
        ends_s: float,
        on_free: Callable[[], None],
        on_stored: Callable[[], None],
    ) -> None:
        self.runs = Runs()
        self._executor = executor
        self._commits = commits
        self._peers = peers
        self._state = state
        self._tasks = state.tasks
        self._ends_s = ends_s
        self._on_free = on_free
        self._on_stored = on_stored
        self._hooks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def free(self) -> int:
        """How many slots are free. A hook that runs after a job keeps its slot."""
        return self._state.max_jobs - len(self._tasks) - len(self._hooks)

    @property
    def room(self) -> int:
        """How many more jobs may be claimed: not too many ends of jobs may wait in memory to be stored."""
        return self._state.max_jobs + MOST_JOBS - len(self.runs)

    @property
    def done(self) -> bool:
        """Whether nothing runs, and Redis has stored all ends."""
        return not (self._tasks or self._hooks or self._commits.pending)

    def start(self, claim: Claim, *, begin: bool = True) -> None:
        """Start a claimed job, or give it back if it should not ``begin``.

        If an earlier try of the job still runs here, that try goes on with the new lease.
        """
        if previous := self.runs.get(claim.lease.job_id):
            if claim.lapsed and previous.renewed:
                previous.take_over(claim)
                return
            if previous.task and not previous.task.done():
                # The earlier try was cancelled, but has not ended. Two tries must not run here at a time, so the job
                # goes back, and another worker may try it.
                wait_s = max(BLOCKED_POLL_S, self._peers.give_back())
                self._settle(self._held(claim), Ending(Retried(claim.lease, int(wait_s * 1000))))
                return
        run = self._held(claim)
        self.runs.add(run)
        if not begin:
            self._settle(run, self._executor.requeue(run, Requeued(counts=False)))
            return
        run.task = self._tasks[claim.lease.job_id] = self._loop.create_task(self._run(run))
        run.task.add_done_callback(partial(self._ended, run))

    def _held(self, claim: Claim) -> Run:
        return Run(claim, monotonic() + self._ends_s)

    async def interrupt_aborted(self, redis: Redis) -> None:
        """Interrupt the running jobs whose abort was requested."""
        # Before a job has begun, the time at which it was enqueued is not known.
        runs = [run for run in self.runs if run.begun and run.interruptible]
        if not runs:
            return
        asked = await redis.zmscore(keys.ABORT, [run.claim.lease.job_id for run in runs])
        for run, asked_ms in zip(runs, asked, strict=True):
            # An older request was for another job with this id.
            if asked_ms is not None and asked_ms >= run.job.enqueued_ms:
                run.interrupt(Cause.ABORT)

    async def stop(self, lease_s: float, until: float) -> None:
        """Cancel the jobs that still run, and store all ends, at most until a time on the monotonic clock."""
        if self._tasks:
            logger.warning("%d jobs go back to the queue: %s", len(self._tasks), ", ".join(self._tasks))
            for job_id in self._tasks:
                if run := self.runs.get(job_id):
                    run.interrupt(Cause.STOP)
            _, stuck = await asyncio.wait(set(self._tasks.values()), timeout=CANCEL_WAIT_S)
            for task in stuck:
                task.cancel()
            if stuck:
                _, stuck = await asyncio.wait(stuck, timeout=1)
            for run in self.runs:
                if run.task in stuck and not run.settling:  # when it is due, this process has ended
                    self._settle(run, Ending(Retried(run.claim.lease, int(lease_s * 1000))))
        if not await self._commits.flush(until - monotonic()):
            logger.error("the ends of %d jobs could not be stored: these jobs will run again", len(self.runs))

    async def stop_hooks(self, until: float) -> None:
        """Wait for the hooks that run after jobs, at most until a time on the monotonic clock."""
        if self._hooks:
            await asyncio.wait(self._hooks, timeout=max(0, until - monotonic()))

    async def _run(self, run: Run) -> None:
        try:
            ending = await self._executor.execute(run)
            if ending and not run.settling:  # else the job did not end in time, and was given back
                self._settle(run, ending)
        finally:
            if not run.settling:  # else its lease would be renewed forever
                self.runs.forget(run)

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        if self._tasks.get(run.claim.lease.job_id) is task:
            del self._tasks[run.claim.lease.job_id]
        self._on_free()
        if task.cancelled():
            logger.error("job %s did not end in time: its lease will lapse", run.claim.lease.job_id)
        elif error := task.exception():
            logger.critical("the code that runs job %s failed", run.claim.lease.job_id, exc_info=error)

    def _settle(self, run: Run, ending: Ending) -> None:
        """Store how a run ended, and then forget it."""
        run.settling = True
        self._count(ending, 1)
        context = copy_context()

        def settled(reply: int) -> None:
            if reply == Reply.EXPIRED:  # the job cannot go back to the queue, so it ends
                self._count(ending, -1)
                expired = context.run(self._executor.refuse, run, Expired(run.error))
                expired.after = ending.after
                context.run(self._settle, run, expired)
                return
            self.runs.forget(run)
            self._on_stored()
            if reply != Reply.DONE:
                logger.warning("the lease of job %s was lost before its end was stored", run.claim.lease.job_id)
            elif ending.after:
                task = self._loop.create_task(ending.after(), context=context)
                self._hooks.add(task)
                task.add_done_callback(self._hook_ended)

        self._commits.add(ending.settlement, settled)

    def _count(self, ending: Ending, more: int) -> None:
        state, counter = self._state, ending.counter
        if counter == "jobs_complete":
            state.jobs_complete += more
        elif counter == "jobs_failed":
            state.jobs_failed += more
        elif counter == "jobs_retried":
            state.jobs_retried += more

    def _hook_ended(self, task: asyncio.Task[None]) -> None:
        self._hooks.discard(task)
        self._on_free()
