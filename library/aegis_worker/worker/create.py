"""Make and run a worker from a ``WorkerSettings``, as arq does."""

from __future__ import annotations

from typing import Any

from aegis_worker.worker.options import attributes, parameters
from aegis_worker.worker.worker import Worker


def create_worker(settings_cls: type | dict[str, Any], **options: Any) -> Worker:
    """Make a worker from a ``WorkerSettings`` class, as ``arq.worker.create_worker`` does.

    Attributes that are not options of a worker are ignored. ``options`` override the attributes of the class.
    """
    known = parameters(Worker)
    return Worker(**{name: value for name, value in attributes(settings_cls).items() if name in known} | options)


def run_worker(settings_cls: type | dict[str, Any], **options: Any) -> Worker:
    """Serve the queue of a ``WorkerSettings`` class until a signal, as ``arq.run_worker`` does. Return the worker."""
    worker = create_worker(settings_cls, **options)
    worker.run()
    return worker
