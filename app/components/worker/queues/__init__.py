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
    return configured(queue)(settings_class)  # changes nothing where the module has done it


def configured(queue: str) -> Callable[[T], T]:
    """Class decorator: complete a ``WorkerSettings`` from the environment.

    What the class says is its default, and ``WORKER_<QUEUE>_…`` variables win over it; what it leaves out comes
    from the settings that all queues share. Our own workers complete a class that lacks the decorator as well; it is
    there for arq's own command line, which reads only what is set on the class itself, not what it inherits.

    Raises ``ValueError`` where the class names another queue than its module.
    """
    queue_name = keys.QUEUE_PREFIX + queue
    serializer = settings.serializer
    shared = {
        "queue_name": queue_name,
        "redis_settings": settings.redis_settings,
        "job_serializer": serializer.dumps,
        "job_deserializer": serializer.loads,
        "keep_result": settings.WORKER_KEEP_RESULT_SECONDS,
        "max_tries": settings.WORKER_MAX_TRIES,
        "job_completion_wait": settings.WORKER_JOB_COMPLETION_WAIT,
        "health_check_interval": settings.WORKER_HEALTH_CHECK_INTERVAL,
        "allow_abort_jobs": True,
    }
    # A key for each replica, whatever the class says: one that all share is deleted by the first that stops.
    ours = {"health_check_key": keys.health(queue_name, socket.gethostname())}
    overrides = settings.overrides(queue).model_dump(exclude_none=True)

    def complete(settings_class: T) -> T:
        given = vars(settings_class)
        if given.get("queue_name", queue_name) != queue_name:
            raise ValueError(f"queue {queue}: queue_name has to be {queue_name!r}, not {given['queue_name']!r}")
        for name, value in (
            {name: value for name, value in shared.items() if name not in given}
            | ours
            | {name.lower(): value for name, value in overrides.items()}
        ).items():
            setattr(settings_class, name, value)
        return settings_class

    return complete
