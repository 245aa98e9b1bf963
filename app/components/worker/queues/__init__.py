"""The queues: one module each in this package, named as the queue is, with a ``WorkerSettings`` class.

A module that is added here is a queue: nothing else lists them.
"""

from aegis_worker.project import configured

__all__ = ["configured"]
