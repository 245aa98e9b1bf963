"""Runs the code of a claimed job, and decides how its claim is settled."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Literal, Protocol

from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import Deserializer, SerializationError, Serializer
from arq.typing import StartupShutdown
from arq.utils import ms_to_datetime, timestamp_ms
from arq.worker import Function
from redis.asyncio import Redis

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff
from aegis_worker.queue.scripts import MOST_KEPT_MS, UNAVAILABLE, cancelled
from aegis_worker.queue.settlement import Completed, Died, Retried, Returned, Settlement
from aegis_worker.worker.context import RunningJob, current_job
from aegis_worker.worker.outcome import (
    Ended,
    Exhausted,
    Refusal,
    Requeued,
    RetryOn,
    UnknownFunction,
    dead_letter,
    decide,
    described,
    raised_by,
    read,
)
from aegis_worker.worker.peers import Peers
from aegis_worker.worker.runs import Cause, Run

logger = logging.getLogger(__name__)

MOST_RESULT_BYTES = 256 << 20  #: half of the largest value that Redis accepts (``proto-max-bulk-len``)
#: arq's ``Job.abort`` gives a deferred job this score, one step before it requests the abort.
ABORT_SCORE = 1


class JobOptions(Protocol):
    """The attributes of the worker that an executor reads: those of arq, and three of ours."""

    functions: dict[str, Function | CronJob]
    queue_name: str
    ctx: dict[Any, Any]
    on_job_start: StartupShutdown | None
    on_job_end: StartupShutdown | None
    after_job_end: StartupShutdown | None
    job_timeout_s: float
    keep_result_s: float
    keep_result_forever: bool
    max_tries: int
    retry_jobs: bool
    job_serializer: Serializer | None
    job_deserializer: Deserializer | None
    backoff: Backoff | None
    retry_on: RetryOn
    replica: str


Counter = Literal["jobs_complete", "jobs_failed", "jobs_retried"]  #: arq's own attributes of a worker


@dataclass(slots=True)
class Ending:
    """How a run has ended, and what to do after Redis has stored it."""

    settlement: Settlement
    after: Callable[[], Coroutine[Any, Any, None]] | None = None  #: called when the end is stored
    counter: Counter | None = None  #: the counter of this end; None if no try of the job has ended


class Executor:
    """Executes runs, any number at a time. It reads the options of the worker again for each run."""

    def __init__(self, options: JobOptions, redis: Redis, peers: Peers) -> None:
        self._options = options
        self._redis = redis
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._short_name = keys.short_name(options.queue_name)

    async def execute(self, run: Run) -> Ending | None:
        """Run a claimed job. Return how it ended, or None if its lease was lost.

        Any error on the way ends the job, too. Raises ``CancelledError`` if the current task is cancelled.
        """
        options, claim = self._options, run.claim
        run.started_ms = timestamp_ms()
        try:
            if claim.payload is None and claim.due_ms == ABORT_SCORE:
                # The job has ended, but the abort has put its id into the queue again.
                return Ending(Completed(claim.lease))
            try:
                run.job = job = read(claim, options.job_deserializer)
                function = self._function_of(run)
            except Refusal as refusal:
                self._set_context(run)
                return await self._refused(run, refusal)

            self._set_context(run)
            ctx = {
                "replica": options.replica,
                **options.ctx,
                "job_id": claim.lease.job_id,
                "job_try": job.tries,
                "enqueue_time": ms_to_datetime(job.enqueued_ms),
                "score": claim.due_ms,
            }
            outcome = await self._try(run, function, ctx)
            if outcome is None:
                return None
            if options.on_job_end:
                try:
                    await self._call_hook("on_job_end", ctx)
                except asyncio.CancelledError:  # at the end of a drain; the job itself has ended
                    logger.error("on_job_end did not end in time")
            ending = self._end(run, outcome) if isinstance(outcome, Ended) else self.requeue(run, outcome)
            if options.after_job_end:
                ending.after = partial(self._call_hook, "after_job_end", ctx)
            return ending
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and cancelled():  # else the code of a task has raised it
                raise
            logger.critical("the code that runs the job failed", exc_info=error)
            return self._end(run, Ended(False, error, "failed"))

    def _function_of(self, run: Run) -> Function | CronJob:
        """Return the function of the job. Raises ``Refusal`` if the job must not run here."""
        job, claim, options = run.job, run.claim, self._options
        # An older request was for another job, which had this id before.
        asked = claim.abort_ms is not None and claim.abort_ms >= job.enqueued_ms
        if asked or claim.due_ms == ABORT_SCORE:
            raise Refusal("aborted", asyncio.CancelledError())
        run.function = function = options.functions.get(job.function)
        if function is None:
            raise UnknownFunction(job.function)
        most = options.max_tries if function.max_tries is None else function.max_tries
        if job.tries > most:
            raise Exhausted(most)
        return function

    async def _refused(self, run: Run, refusal: Refusal) -> Ending:
        """Return the end of a job that is not run here. If its function is unknown, other replicas may run it."""
        run.interruptible = False
        if isinstance(refusal, UnknownFunction) and await self._peers.know(run.job.function):
            return Ending(Retried(run.claim.lease, int(self._peers.give_back() * 1000)))
        if isinstance(refusal, Exhausted):
            # Report the error of the last try that stored one.
            with suppress(*UNAVAILABLE):
                if raised := await self._redis.get(keys.RAISED + run.claim.lease.job_id):
                    refusal = Exhausted(refusal.max_tries, raised.decode(errors="replace"))
        return self.refuse(run, refusal)

    async def _try(self, run: Run, function: Function | CronJob, ctx: dict[Any, Any]) -> Ended | Requeued | None:
        """Run the code of the job. Return what to do with the job, or None if another worker has its lease now."""
        job, options = run.job, self._options
        timeout_s = options.job_timeout_s if function.timeout_s is None else function.timeout_s
        timer = None
        run.begun = True
        try:
            if run.cause:
                raise asyncio.CancelledError
            if options.on_job_start:
                await self._call_hook("on_job_start", ctx)
                run.started_ms = timestamp_ms()
            logger.info("started, %.3fs after it was due", (run.started_ms - run.claim.due_ms) / 1000)
            if timeout_s == inf:
                run.ends_by = inf
            else:
                timer = self._loop.call_later(timeout_s, run.interrupt, Cause.TIMEOUT)
            result = await function.coroutine(ctx, *job.args, **job.kwargs)
            return Ended(True, result)
        except BaseException as raised:  # a SystemExit, for example, would end the event loop
            error = raised
        finally:
            run.interruptible = False
            if timer:
                timer.cancel()
        if run.cause and run.task:  # any error comes from our interruption
            run.task.uncancel()
            if run.cause is Cause.LOST:
                return None
            if run.cause is Cause.STOP:
                return Requeued(counts=False)
            if run.cause is Cause.ABORT:
                return Ended(False, asyncio.CancelledError(), "aborted")
            interrupted, error = error, TimeoutError(f"not done in {timeout_s:g}s")
            error.__cause__ = interrupted  # its traceback shows where
        run.error = error
        outcome = decide(
            error,
            job.tries,
            self._max_tries(function),
            options.backoff,
            retry_on=options.retry_on,
            retry_jobs=options.retry_jobs,
        )
        if isinstance(outcome, Requeued):
            logger.warning("try %d failed, again in %.1fs: %s", job.tries, outcome.wait_s, described(error))
        else:
            logger.error("failed: %s", described(error), exc_info=error)
        return outcome

    # -- endings -----------------------------------------------------------------------------------------------------

    def refuse(self, run: Run, refusal: Refusal) -> Ending:
        """Return the end of a job that is not run, or is not tried again."""
        logger.warning("not run: %s", refusal)
        return self._end(run, refusal.end)

    def requeue(self, run: Run, outcome: Requeued) -> Ending:
        """Return the end of a run whose job goes back to its queue."""
        if outcome.counts:
            raised = raised_by(run.error) if run.error else ""
            retried = Retried(run.claim.lease, int(outcome.wait_s * 1000), run.job.tries, raised)
            return Ending(retried, counter="jobs_retried")
        logger.info("given back; the try does not count")
        return Ending(Returned(run.claim.lease, run.claim.due_ms), counter="jobs_retried")

    def _end(self, run: Run, end: Ended) -> Ending:
        """Return the end of a run whose job has ended."""
        finished_ms = timestamp_ms()
        options, function = self._options, run.function
        keep_s, forever = options.keep_result_s, options.keep_result_forever
        if function is not None:
            keep_s = function.keep_result_s if function.keep_result_s is not None else keep_s
            forever = function.keep_result_forever if function.keep_result_forever is not None else forever
        result = b""
        if forever or keep_s:
            end, result = self._serialized(run, end, finished_ms)
        if end.success:
            logger.info("done in %.3fs", (finished_ms - run.started_ms) / 1000)
        keep_ms = None if forever else max(1, int(min(keep_s * 1000, MOST_KEPT_MS)))
        lease = run.claim.lease
        if end.reason is None or end.reason == "aborted":
            mark_ms = int(keep_cronjob_progress * 1000) if isinstance(function, CronJob) else 0
            counter: Counter = "jobs_complete" if end.success else "jobs_failed"
            return Ending(Completed(lease, result, keep_ms, mark_ms), counter=counter)
        letter = dead_letter(run.job, end.result, end.reason)
        return Ending(Died(lease, result, keep_ms, letter, run.claim.payload or b""), counter="jobs_failed")

    def _serialized(self, run: Run, end: Ended, finished_ms: int) -> tuple[Ended, bytes]:
        """Return how the job ended, and its result as arq stores it, or ``b""`` if the arguments cannot be serialized.

        A success becomes a failure if its result cannot be serialized. Else a producer would wait for it in vain.
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
            "q": self._options.queue_name,
            "id": run.claim.lease.job_id,
        }
        try:
            return end, self._packed(record)
        except BaseException as error:  # arq's serialize_result would not say what is wrong
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
            logger.critical("no result of the job can be stored", exc_info=True)
            return end, b""

    def _packed(self, record: dict[str, Any]) -> bytes:
        """Return a result as bytes.

        Raises the errors of the queue's serializer, ``TypeError`` if it returns no bytes, and ``ValueError`` if it
        returns too many.
        """
        packed = (self._options.job_serializer or pickle.dumps)(record)
        if not isinstance(packed, bytes):
            raise TypeError(f"the serializer returned {type(packed).__name__}, not bytes")
        if len(packed) > MOST_RESULT_BYTES:
            raise ValueError(f"it has {len(packed):,} bytes, and the limit is {MOST_RESULT_BYTES:,}")
        return packed

    def _max_tries(self, function: Function | CronJob) -> int:
        return self._options.max_tries if function.max_tries is None else function.max_tries

    def _set_context(self, run: Run) -> None:
        current_job.set(RunningJob(run.claim.lease.job_id, self._short_name, run.job.function, run.job.tries))

    async def _call_hook(self, name: str, ctx: dict[Any, Any]) -> None:
        """Call a hook of the job. Its errors are logged, and change neither the worker nor the end of the job."""
        try:
            await getattr(self._options, name)(ctx)
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%s raised", name)
