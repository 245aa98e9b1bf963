"""The queues. Each module of this package is a queue of the same name, and has a class ``WorkerSettings``.

To add a queue, add a module. No other file lists the queues.
"""

from aegis_worker.project import configured

__all__ = ["configured"]
