"""The claims of a worker, each until its end is stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from time import monotonic

from arq.cron import CronJob
from arq.worker import Function

from aegis_worker.queue.scripts import Claim
from aegis_worker.queue.settlement import Lease
from aegis_worker.worker.outcome import UNREAD, Job

logger = logging.getLogger(__name__)


class Cause(Enum):
    """Why a running job is interrupted."""

    TIMEOUT = "timeout"
    ABORT = "abort"
    STOP = "stop"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class Run:
    """A claim of this worker, until its end is stored."""

    claim: Claim
    ends_by: float  #: on the monotonic clock: after that its lease is not renewed
    job: Job = UNREAD
    function: Function | CronJob | None = None
    started_ms: int = 0
    task: asyncio.Task[None] | None = None
    error: BaseException | None = None  #: the error that ended the try
    begun: bool = False  #: the code of the job, or on_job_start, was called
    interruptible: bool = True  #: the code of the job may still be cancelled
    settling: bool = False  #: the end is being sent to Redis
    cause: Cause | None = None

    @property
    def renewed(self) -> bool:
        """Whether the lease is renewed. If the job should have ended long ago, another worker may claim it."""
        return self.settling or self.ends_by > monotonic()

    def take_over(self, claim: Claim) -> None:
        """Go on with the lease of a new claim, because the old lease had lapsed."""
        self.claim.lease.token, self.claim.lease.tried = claim.lease.token, claim.lease.tried

    def interrupt(self, cause: Cause) -> None:
        """Cancel the code of the job, or prevent its start. The first cause is kept."""
        if self.interruptible and self.cause is None:
            self.cause = cause
            if self.begun and self.task:  # a task that is cancelled before its first step would not settle the claim
                self.task.cancel()


class Runs:
    """All runs of a worker, by the ids of their jobs."""

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._by_id.values()))

    def get(self, job_id: str) -> Run | None:
        return self._by_id.get(job_id)

    def add(self, run: Run) -> None:
        self._by_id[run.claim.lease.job_id] = run

    def forget(self, run: Run) -> None:
        # This worker may have the job again: given back, and claimed before the reply came.
        if self._by_id.get(run.claim.lease.job_id) is run:
            del self._by_id[run.claim.lease.job_id]

    def leases(self) -> list[Lease]:
        """Return the leases to renew. Also called in another thread."""
        return [run.claim.lease for run in self if run.renewed]

    def lose(self, leases: Iterable[Lease]) -> None:
        """Interrupt the jobs whose leases other workers have now."""
        for lease in leases:
            # The job may have ended meanwhile, or this worker may have another lease for it.
            if (run := self._by_id.get(lease.job_id)) and run.claim.lease == lease and not run.settling:
                logger.warning("the lease of job %s is lost: another worker has it", lease.job_id)
                run.interrupt(Cause.LOST)
