"""The claims in a worker's hands, each until its end is stored."""

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
    """A claim in this worker's hands, until its end is stored."""

    claim: Claim
    ends_by: float  #: on the monotonic clock: from then on its lease is not renewed
    job: Job = UNREAD
    function: Function | CronJob | None = None
    started_ms: int = 0
    task: asyncio.Task[None] | None = None
    error: BaseException | None = None  #: what ended its try
    begun: bool = False  #: its own code, or on_job_start, was called
    interruptible: bool = True  #: its code may still be cancelled
    settling: bool = False  #: how it ended is on its way to Redis
    cause: Cause | None = None

    @property
    def renewed(self) -> bool:
        """Whether its lease is renewed; that of a job which should have ended long ago is left to whoever claims it."""
        return self.settling or self.ends_by > monotonic()

    def take_over(self, claim: Claim) -> None:
        """Go on by the lease of a new claim, since the old one had lapsed."""
        self.claim.lease.token, self.claim.lease.tried = claim.lease.token, claim.lease.tried

    def interrupt(self, cause: Cause) -> None:
        """Cancel the job's code, if it still runs, or have it not begin; the first cause stands."""
        if self.interruptible and self.cause is None:
            self.cause = cause
            if self.begun and self.task:  # one that is cancelled before its first step would settle nothing
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
        # By now the job may be ours once more: given back, and claimed before the reply came.
        if self._by_id.get(run.claim.lease.job_id) is run:
            del self._by_id[run.claim.lease.job_id]

    def leases(self) -> list[Lease]:
        """Return the leases that are to be renewed; called in a thread, too."""
        return [run.claim.lease for run in self if run.renewed]

    def lose(self, leases: Iterable[Lease]) -> None:
        """Interrupt the jobs whose leases are somebody else's now."""
        for lease in leases:
            # By now the job may have ended, or be ours by another lease.
            if (run := self._by_id.get(lease.job_id)) and run.claim.lease == lease and not run.settling:
                logger.warning("the lease of job %s is lost: another worker has it", lease.job_id)
                run.interrupt(Cause.LOST)
