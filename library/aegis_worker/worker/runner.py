"""Runs claimed jobs, each in a task of its own, until Redis has heard how it ended."""

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

CANCEL_WAIT_S = 5.0  #: what a cancelled job has to clean up before the process ends without it


class WorkerState(Protocol):
    """What a runner reads and changes of its worker: arq's own attributes."""

    max_jobs: int
    tasks: dict[str, asyncio.Task[Any]]
    jobs_complete: int
    jobs_failed: int
    jobs_retried: int


class Runner:
    """Holds the runs from their claim to their end.

    :param state: how many jobs may run, how many have ended, and the tasks of those that run
    :param ends_s: seconds after a claim in which any job has ended: then its lease is no longer renewed
    :param on_free: called whenever a job, or a hook that runs after it, makes room for another
    :param on_stored: called whenever Redis has heard how a job ended
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
        """How many slots are free: hooks that run after a job keep its slot."""
        return self._state.max_jobs - len(self._tasks) - len(self._hooks)

    @property
    def room(self) -> int:
        """How many more runs may be held in memory, with those whose end is not stored yet."""
        return self._state.max_jobs + MOST_JOBS - len(self.runs)

    @property
    def done(self) -> bool:
        """Whether nothing runs, and Redis has heard of all ends."""
        return not (self._tasks or self._hooks or self._commits.pending)

    def start(self, claim: Claim, *, begin: bool = True) -> None:
        """Start a claimed job, or give it back where it is not to ``begin``.

        Where its last try is still in our hands, that goes on by the new claim.
        """
        if previous := self.runs.get(claim.lease.job_id):
            if claim.lapsed and previous.renewed:
                previous.take_over(claim)
                return
            if previous.task and not previous.task.done():
                # It does not end, though it was cancelled: others may try the job, but it does not run beside itself.
                wait_s = max(BLOCKED_POLL_S, self._peers.leave())
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
        """Interrupt the running jobs whose abort was asked for."""
        # When one was enqueued that is not read yet, we do not know.
        runs = [run for run in self.runs if run.begun and run.interruptible]
        if not runs:
            return
        asked = await redis.zmscore(keys.ABORT, [run.claim.lease.job_id for run in runs])
        for run, asked_ms in zip(runs, asked, strict=True):
            if asked_ms is not None and asked_ms >= run.job.enqueued_ms:  # an older one was for a job of this id before
                run.interrupt(Cause.ABORT)

    async def stop(self, lease_s: float, until: float) -> None:
        """Cancel what still runs, and have Redis hear of all ends, until a time on the monotonic clock at most."""
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
                if run.task in stuck and not run.settling:  # by then it has ended with its process
                    self._settle(run, Ending(Retried(run.claim.lease, int(lease_s * 1000))))
        if not await self._commits.flush(until - monotonic()):
            logger.error("ends of %d jobs could not be stored: they will run again", len(self.runs))

    async def stop_hooks(self, until: float) -> None:
        """Wait for the hooks that run after jobs, until a time on the monotonic clock at most."""
        if self._hooks:
            await asyncio.wait(self._hooks, timeout=max(0, until - monotonic()))

    async def _run(self, run: Run) -> None:
        try:
            ending = await self._executor.execute(run)
            if ending and not run.settling:  # it did not end in time, and was given back
                self._settle(run, ending)
        finally:
            if not run.settling:  # or its lease would be renewed for ever
                self.runs.forget(run)

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        if self._tasks.get(run.claim.lease.job_id) is task:
            del self._tasks[run.claim.lease.job_id]
        self._on_free()
        if task.cancelled():
            logger.error("job %s did not end in time: its lease will lapse", run.claim.lease.job_id)
        elif error := task.exception():
            logger.critical("job %s ended outside its bounds", run.claim.lease.job_id, exc_info=error)

    def _settle(self, run: Run, ending: Ending) -> None:
        """Have Redis hear how a run ended, and forget it then."""
        run.settling = True
        self._count(ending, 1)
        context = copy_context()

        def settled(reply: int) -> None:
            if reply == Reply.EXPIRED:  # it cannot go back
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
        if ending.counter:
            setattr(self._state, ending.counter, getattr(self._state, ending.counter) + more)

    def _hook_ended(self, task: asyncio.Task[None]) -> None:
        self._hooks.discard(task)
        self._on_free()
