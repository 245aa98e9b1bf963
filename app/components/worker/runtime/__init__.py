"""A worker for arq's queues, with arq's wire format; it knows nothing of this project's queues and settings."""

from .context import current_job
from .policies import Backoff, RateLimit
from .producer import NewJob, Producer, enqueue_many
from .worker import Worker

__all__ = ["Backoff", "NewJob", "Producer", "RateLimit", "Worker", "current_job", "enqueue_many"]
