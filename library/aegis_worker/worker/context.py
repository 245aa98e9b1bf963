"""The job that the current code runs for. Log lines contain it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class RunningJob(NamedTuple):
    job_id: str
    queue: str  #: short name
    task: str
    job_try: int


current_job: ContextVar[RunningJob | None] = ContextVar("current_job", default=None)
