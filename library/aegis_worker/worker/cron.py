"""Cron jobs: each run is enqueued once for all replicas, even if their clocks differ."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from arq.connections import ArqRedis
from arq.cron import CronJob
from arq.jobs import serialize_job
from arq.utils import timestamp_ms, to_unix_ms

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import UNAVAILABLE, Script

logger = logging.getLogger(__name__)

#: Replicas that start within so many seconds of the first one count as one start. ``run_at_startup`` gives one run.
ONE_START_S = 60
AHEAD_MS = 5000  #: so much may the clock of a replica be ahead of the clock of Redis


class Cron:
    """Enqueues the runs that are due. Redis keeps the time of the last run of each cron job that was enqueued."""

    def __init__(self, redis: ArqRedis, queue_name: str, replica: str, jobs: Sequence[CronJob]) -> None:
        self._redis = redis
        self._queue = queue_name
        self._replica = replica
        self._jobs = jobs
        self._tick = Script(redis.execute_command, "tick")

    async def enqueue_due(self, now: datetime, ahead: timedelta) -> None:
        """Enqueue the runs until ``now + ahead``. Of all runs that an outage of Redis has delayed, one is enqueued."""
        # In order of time: of two cron jobs with one name, the later run would suppress the earlier one.
        for job in sorted(self._jobs, key=lambda job: job.next_run or now):
            at, starts = job.next_run or now, job.next_run is None
            if at >= now + ahead:
                continue
            try:
                if (job.run_at_startup or not starts) and not await self._enqueue(job, at, starts=starts):
                    continue
            except UNAVAILABLE:
                raise  # the caller tries again
            except Exception:
                logger.exception("cron job %s cannot be enqueued", job.name)
            job.calculate_next(max(at, now))

    async def _enqueue(self, job: CronJob, at: datetime, *, starts: bool = False) -> bool:
        """Enqueue a run. Return False if it is too early by the clock of Redis."""
        if not job.unique:
            await self._redis.enqueue_job(job.name, _job_id=job.job_id, _queue_name=self._queue, _defer_until=at)
            return True
        at_ms = to_unix_ms(at)
        job_id = job.job_id or f"{job.name}:{at_ms}"
        reply = await self._tick(
            keys=[
                self._queue,
                keys.ticks(self._queue),
                keys.started(self._queue, job.name),
                keys.JOB + job_id,
                keys.RESULT + job_id,
            ],
            args=[
                job.name,
                at_ms,
                job_id,
                serialize_job(job.name, (), {}, None, timestamp_ms(), serializer=self._redis.job_serializer),
                max(0, at_ms - timestamp_ms()) + self._redis.expires_extra_ms,
                self._replica if starts else "",
                ONE_START_S,
                AHEAD_MS,
            ],
        )
        return bool(reply >= 0)
