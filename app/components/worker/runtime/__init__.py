"""A worker for arq's queues, with arq's wire format; it knows nothing of this project's queues and settings."""

from .context import current_job
from .retry import Backoff
from .worker import Worker

__all__ = ["Backoff", "Worker", "current_job"]
