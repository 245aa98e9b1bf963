"""A fast worker for arq's queues that loses no job, and a producer. Both can share queues with stock arq.

``Worker`` replaces ``arq.Worker``. ``Producer`` enqueues jobs. ``Serializer`` writes payloads that contain no code.
``aegis_worker.project.Project`` describes a whole project: settings, queues and the class of its workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aegis_worker.payload import PayloadError, RemoteError, Serializer, register
from aegis_worker.queue.policies import Backoff, RateLimit
from aegis_worker.queue.producer import NewJob, Producer, enqueue_many
from aegis_worker.worker.context import current_job
from aegis_worker.worker.create import create_worker, run_worker
from aegis_worker.worker.worker import Worker

if TYPE_CHECKING:
    from aegis_worker.settings import Settings

__all__ = [
    "Backoff",
    "NewJob",
    "PayloadError",
    "Producer",
    "RateLimit",
    "RemoteError",
    "Serializer",
    "Settings",
    "Worker",
    "create_worker",
    "current_job",
    "enqueue_many",
    "register",
    "run_worker",
]


def __getattr__(name: str) -> Any:
    """Import ``Settings`` when it is used, because it needs pydantic-settings, which the extra ``project`` installs."""
    if name == "Settings":
        from aegis_worker.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
