"""Running jobs: an ``arq.worker.Worker`` that carries a claimed job to its end, or back to its queue."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from math import inf
from time import monotonic
from typing import Any

import arq.worker
from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import SerializationError
from arq.utils import ms_to_datetime, timestamp_ms
from arq.worker import Function

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff
from aegis_worker.queue.scripts import MOST_KEPT_MS, UNAVAILABLE, cancelled
from aegis_worker.queue.settlement import Completed, Died, Lease, Reply, Retried, Returned, Settlement
from aegis_worker.worker.commits import Commits
from aegis_worker.worker.context import RunningJob, current_job
from aegis_worker.worker.execution import (
    NO_TIMEOUT_S,
    Again,
    Cause,
    Ended,
    Exhausted,
    Expired,
    Refusal,
    RetryOn,
    Run,
    UnknownFunction,
    dead_letter,
    decide,
    described,
    raised_by,
    read,
)
from aegis_worker.worker.peers import Peers

logger = logging.getLogger(__name__)

MOST_RESULT_BYTES = 256 << 20  #: Redis takes no value of more than twice that (``proto-max-bulk-len``)
#: ``Job.abort`` makes a deferred job due by this score, one step before it asks for the abort.
ABORT_SCORE = 1


class JobRunner(arq.worker.Worker):
    """What claims jobs is in ``claimer.py``: it gives each to ``_carry``, in a task of its own."""

    _commits: Commits
    _peers: Peers

    def __init__(
        self,
        functions: Sequence[Any] = (),
        *,
        backoff: Backoff | None = None,
        retry_on: RetryOn = Exception,
        **options: Any,
    ) -> None:
        unlimited = options.get("job_timeout", 0) is None
        if unlimited:  # arq compares it with the functions' own
            options["job_timeout"] = NO_TIMEOUT_S
        super().__init__(functions, **options)
        if unlimited:
            self.job_timeout_s = inf
        self._short_name = keys.short_name(self.queue_name)
        self.backoff = backoff
        self.retry_on = retry_on
        self._runs: dict[str, Run] = {}  # claimed, and their end not stored yet
        self._hooks: set[asyncio.Task[None]] = set()

    def _slot_freed(self) -> None:
        """Called whenever a job, or a hook that runs after it, makes room for another."""

    def _end_stored(self) -> None:
        """Called whenever Redis has taken how a job ended."""

    async def _carry(self, run: Run) -> None:
        """Carry a claimed job to its end, or back to its queue; whatever else goes wrong on the way ends it as well."""
        try:
            await self._carry_out(run)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and cancelled():  # or somebody's code has raised it
                raise
            logger.critical("ended outside its bounds", exc_info=error)
            if not run.settling:
                self._settle_end(run, Ended(False, error, "failed"))
        finally:
            if not run.settling:  # or its lease would be renewed for ever
                self._forget(run)

    async def _carry_out(self, run: Run) -> None:
        claim = run.claim
        run.started_ms = timestamp_ms()
        if claim.payload is None and claim.due_ms == ABORT_SCORE:  # it ended while its abort put it back into the queue
            self._settle(run, Completed(claim.lease))
            return
        try:
            run.job = job = read(claim, self.job_deserializer)
            function = self._function_for(run)
        except Refusal as refusal:
            self._set_context(run)
            if isinstance(refusal, UnknownFunction) and await self._leave(run):
                return
            if isinstance(refusal, Exhausted):
                refusal = await self._with_last_error(run, refusal)
            self._refuse(run, refusal)
            return

        self._set_context(run)
        ctx = {
            **self.ctx,
            "job_id": claim.lease.job_id,
            "job_try": job.tries,
            "enqueue_time": ms_to_datetime(job.enqueued_ms),
            "score": claim.due_ms,
        }
        outcome = await self._try(run, function, ctx)
        if outcome is None:
            return
        if self.on_job_end:
            try:
                await self._call_hook("on_job_end", ctx)
            except asyncio.CancelledError:  # at the end of a drain; the job itself is done
                logger.error("on_job_end did not end in time")
        after = partial(self._call_hook, "after_job_end", ctx) if self.after_job_end else None
        if isinstance(outcome, Ended):
            self._settle_end(run, outcome, after)
        else:
            self._settle_back(run, outcome, after)

    def _function_for(self, run: Run) -> Function | CronJob:
        """Return what the job is to run. Raises ``Refusal`` where it may not."""
        job, claim = run.job, run.claim
        # An older request was for a job that had this id before.
        asked = claim.abort_ms is not None and claim.abort_ms >= job.enqueued_ms
        if asked or claim.due_ms == ABORT_SCORE:
            raise Refusal("aborted", asyncio.CancelledError())
        run.function = function = self.functions.get(job.function)
        if function is None:
            raise UnknownFunction(job.function)
        most = self._max_tries(function)
        if job.tries > most:
            raise Exhausted(most)
        return function

    def _refuse(self, run: Run, refusal: Refusal, after: Callable[[], Any] | None = None) -> None:
        logger.warning("not run: %s", refusal)
        self._settle_end(run, refusal.end, after)

    async def _with_last_error(self, run: Run, refusal: Exhausted) -> Exhausted:
        """Return a refusal that says what the last try has raised which lived to tell of it."""
        run.interruptible = False
        with suppress(*UNAVAILABLE):
            if raised := await self.pool.get(keys.RAISED + run.claim.lease.job_id):
                return Exhausted(refusal.max_tries, raised.decode(errors="replace"))
        return refusal

    async def _leave(self, run: Run) -> bool:
        """Leave a job that is not known here to replicas that know it; return False where there are none."""
        run.interruptible = False  # it is as good as given back
        if not await self._peers.know(run.job.function):
            return False
        self._settle(run, Retried(run.claim.lease, int(self._peers.leave() * 1000)))
        return True

    async def _try(self, run: Run, function: Function | CronJob, ctx: dict[Any, Any]) -> Ended | Again | None:
        """Run the job's code; return what is to become of it, None where that is no longer ours to say."""
        job = run.job
        timeout_s = self.job_timeout_s if function.timeout_s is None else function.timeout_s
        timer = None
        run.begun = True
        try:
            if run.cause:
                raise asyncio.CancelledError
            if self.on_job_start:
                await self._call_hook("on_job_start", ctx)
                run.started_ms = timestamp_ms()
            logger.info("started, %.3fs after it was due", (run.started_ms - run.claim.due_ms) / 1000)
            if timeout_s == inf:
                run.ends_by = inf
            else:
                timer = self.loop.call_later(timeout_s, run.interrupt, Cause.TIMEOUT)
            result = await function.coroutine(ctx, *job.args, **job.kwargs)
            return Ended(True, result)
        except BaseException as raised:  # SystemExit, say, would end the loop
            error = raised
        finally:
            run.interruptible = False
            if timer:
                timer.cancel()
        if run.cause and run.task:  # whatever was raised came of our interruption
            run.task.uncancel()
            if run.cause is Cause.LOST:
                return None
            if run.cause is Cause.STOP:
                return Again(counts=False)
            if run.cause is Cause.ABORT:
                return Ended(False, asyncio.CancelledError(), "aborted")
            interrupted, error = error, TimeoutError(f"not done in {timeout_s:g}s")
            error.__cause__ = interrupted  # which tells where
        run.error = error
        decision = decide(
            error,
            job.tries,
            self._max_tries(function),
            self.backoff,
            retry_on=self.retry_on,
            retry_jobs=self.retry_jobs,
        )
        if isinstance(decision, Again):
            logger.warning("try %d failed, again in %.1fs: %s", job.tries, decision.wait_s, described(error))
        else:
            logger.error("failed: %s", described(error), exc_info=error)
        return decision

    def _settle_end(self, run: Run, end: Ended, after: Callable[[], Any] | None = None) -> None:
        finished_ms = timestamp_ms()
        job, function = run.job, run.function
        keep_s, forever = self.keep_result_s, self.keep_result_forever
        if function is not None:
            keep_s = function.keep_result_s if function.keep_result_s is not None else keep_s
            forever = function.keep_result_forever if function.keep_result_forever is not None else forever
        result = b""
        if forever or keep_s:
            end, result = self._serialized(run, end, finished_ms)
        if end.success:
            self.jobs_complete += 1
            logger.info("done in %.3fs", (finished_ms - run.started_ms) / 1000)
        else:
            self.jobs_failed += 1
        keep_ms = None if forever else max(1, int(min(keep_s * 1000, MOST_KEPT_MS)))
        settlement: Settlement
        if end.reason in (None, "aborted"):
            mark_ms = int(keep_cronjob_progress * 1000) if isinstance(function, CronJob) else 0
            settlement = Completed(run.claim.lease, result, keep_ms, mark_ms)
        else:
            said, payload = dead_letter(job, end.result, end.reason), run.claim.payload or b""
            settlement = Died(run.claim.lease, result, keep_ms, said, payload)
        self._settle(run, settlement, after)

    def _serialized(self, run: Run, end: Ended, finished_ms: int) -> tuple[Ended, bytes]:
        """Return how the job ended and its result as arq stores it; nothing of it where its arguments are what cannot
        be serialized. A success whose result cannot be is a failure, since whoever waits for it would wait in vain.
        """
        record = {
            "t": run.job.tries,
            "f": run.job.function,
            "a": run.job.args,
            "k": run.job.kwargs,
            "et": run.job.enqueued_ms,
            "s": end.success,
            "r": end.result,
            "st": run.started_ms,
            "ft": finished_ms,
            "q": self.queue_name,
            "id": run.claim.lease.job_id,
        }
        try:
            return end, self._packed(record)
        except BaseException as error:  # not by arq's serialize_result, which does not tell what was wrong
            ended = (
                "the job succeeded, but its result"
                if end.success
                else f"the job failed, and {described(end.result):.500}"
            )
            failure = SerializationError(f"{ended} cannot be stored: {error}")
            failure.__cause__ = error
        logger.error("%s", failure)
        if end.success:
            end = Ended(False, failure, "unserializable")
        try:
            return end, self._packed(record | {"s": False, "r": failure})
        except BaseException:
            logger.critical("no result can be stored", exc_info=True)
            return end, b""

    def _packed(self, record: dict[str, Any]) -> bytes:
        """Return a result as the queue's serializer writes it. Raises what that raises, ``TypeError`` where it gives no
        bytes, and ``ValueError`` where these are more than Redis takes."""
        packed = (self.job_serializer or pickle.dumps)(record)
        if not isinstance(packed, bytes):
            raise TypeError(f"the serializer gives {type(packed).__name__}, not bytes")
        if len(packed) > MOST_RESULT_BYTES:
            raise ValueError(f"{len(packed)} bytes are more than {MOST_RESULT_BYTES}")
        return packed

    def _settle_back(self, run: Run, again: Again, after: Callable[[], Any] | None = None) -> None:
        self.jobs_retried += 1
        if again.counts:
            raised = raised_by(run.error) if run.error else ""
            settlement: Settlement = Retried(run.claim.lease, int(again.wait_s * 1000), run.job.tries, raised)
        else:
            logger.info("given back, its try does not count")
            settlement = Returned(run.claim.lease, run.claim.due_ms)
        self._settle(run, settlement, after)

    def _settle(self, run: Run, settlement: Settlement, after: Callable[[], Any] | None = None) -> None:
        run.settling = True
        context = copy_context()

        def settled(reply: int) -> None:
            if reply == Reply.EXPIRED:
                context.run(self._refuse, run, Expired(run.error), after)
                return
            self._forget(run)
            self._end_stored()
            if reply != Reply.DONE:
                logger.warning("the lease of job %s was lost before its end was stored", run.claim.lease.job_id)
            elif after:
                task = self.loop.create_task(after(), context=context)
                self._hooks.add(task)
                task.add_done_callback(self._hook_ended)

        self._commits.add(settlement, settled)

    def _hook_ended(self, task: asyncio.Task[None]) -> None:
        self._hooks.discard(task)
        self._slot_freed()

    def _forget(self, run: Run) -> None:
        # By now the job may be ours once more: given back, and claimed before the reply came.
        if self._runs.get(run.claim.lease.job_id) is run:
            del self._runs[run.claim.lease.job_id]

    def _leases(self) -> list[Lease]:
        return [run.claim.lease for run in list(self._runs.values()) if self._is_kept(run)]

    @staticmethod
    def _is_kept(run: Run) -> bool:
        """Whether its lease is renewed; that of a job which should have ended long ago is left to whoever claims it."""
        return run.settling or run.ends_by > monotonic()

    def _lose_from_thread(self, leases: list[Lease]) -> None:
        self.loop.call_soon_threadsafe(self._lose, leases)

    def _lose(self, leases: list[Lease]) -> None:
        for lease in leases:
            # By now the job may have ended, or be ours by another lease.
            if (run := self._runs.get(lease.job_id)) and run.claim.lease == lease and not run.settling:
                logger.warning("the lease of job %s is lost: another worker has it", lease.job_id)
                run.interrupt(Cause.LOST)

    async def _interrupt_aborted(self) -> None:
        runs = [run for run in self._runs.values() if run.begun]  # of one that is not read yet, we know no time
        if not runs:
            return
        for run, asked_ms in zip(
            runs, await self.pool.zmscore(keys.ABORT, [run.claim.lease.job_id for run in runs]), strict=True
        ):
            if asked_ms is not None and asked_ms >= run.job.enqueued_ms:  # an older one was for a job of this id before
                run.interrupt(Cause.ABORT)

    def _max_tries(self, function: Function | CronJob) -> int:
        return self.max_tries if function.max_tries is None else function.max_tries

    def _set_context(self, run: Run) -> None:
        current_job.set(RunningJob(run.claim.lease.job_id, self._short_name, run.job.function, run.job.tries))

    async def _call_hook(self, name: str, ctx: dict[Any, Any]) -> None:
        """Call a job's hook; what it raises is logged, and neither ends the worker nor changes the job's end."""
        try:
            await getattr(self, name)(ctx)
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%s raised", name)
