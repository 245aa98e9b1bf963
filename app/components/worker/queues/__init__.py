"""The queues: one module each in this package, named as the queue is, with a ``WorkerSettings`` class.

A module that is added here is a queue: nothing else lists them.
"""

from __future__ import annotations

import pkgutil
import socket
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from app.components.worker.runtime import keys
from app.core.config import settings

T = TypeVar("T", bound=type)


def names() -> list[str]:
    """Return the short names of all queues, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(queue: str) -> type:
    """Return the ``WorkerSettings`` of a queue, by its short name. Raises ``ValueError`` for a name that is none."""
    if queue not in names():
        raise ValueError(f"unknown queue {queue!r}: the queues are {', '.join(names())}")
    settings_class: type = import_module(f"{__name__}.{queue}").WorkerSettings
    return settings_class


def configured(queue: str) -> Callable[[T], T]:
    """Class decorator: complete a ``WorkerSettings`` from the environment.

    What the class says is its default, and ``WORKER_<QUEUE>_…`` variables win over it; what it leaves out comes
    from the settings that all queues share. Each attribute is set on the class itself, because arq's own command
    line reads only that, not what a class inherits.
    """
    queue_name = keys.QUEUE_PREFIX + queue
    shared = {
        "queue_name": queue_name,
        "redis_settings": settings.redis_settings,
        "keep_result": settings.WORKER_KEEP_RESULT_SECONDS,
        "max_tries": settings.WORKER_MAX_TRIES,
        "job_completion_wait": settings.WORKER_JOB_COMPLETION_WAIT,
        "health_check_key": keys.health(queue_name, socket.gethostname()),
        "health_check_interval": settings.WORKER_HEALTH_CHECK_INTERVAL,
        "allow_abort_jobs": True,
    }

    def complete(settings_class: T) -> T:
        for name, value in shared.items():
            if name not in vars(settings_class):
                setattr(settings_class, name, value)
        for name, value in settings.overrides(queue).model_dump(exclude_none=True).items():
            setattr(settings_class, name.lower(), value)
        return settings_class

    return complete
