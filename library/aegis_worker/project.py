"""A project: its settings, its queues, and the class of the workers that serve them.

The environment variable ``AEGIS_PROJECT`` names a module, by default ``app.project``. The attribute ``project`` of this
module is a :class:`Project`. Flask finds an application in the same way, by ``FLASK_APP``.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aegis_worker.queue import keys
from aegis_worker.queue.policies import Backoff
from aegis_worker.redis.pool import create_pool
from aegis_worker.worker.options import attributes, parameters

if TYPE_CHECKING:
    from arq.connections import RedisSettings

    from aegis_worker.settings import Settings
    from aegis_worker.worker.worker import Worker

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=type)

VARIABLE = "AEGIS_PROJECT"
DEFAULT = "app.project"

_SIMILARITY = 0.8  #: from 0 to 1: how similar an unknown attribute must be to an option, to name it in the warning


@dataclass(frozen=True)
class Project:
    """The parts of a project, by name. They are imported when they are needed.

    :param settings: ``module:attribute`` of the only instance of the settings
    :param queues: the package that has one module for each queue, with a class ``WorkerSettings``
    :param worker: ``module:attribute`` of the class that serves the queues, a subclass of ``aegis_worker.Worker``
    """

    settings: str
    queues: str
    worker: str = "aegis_worker:Worker"

    @cached_property
    def config(self) -> Settings:
        """The project's settings. Raises pydantic's ``ValidationError`` if they are not valid."""
        config: Settings = _attribute(self.settings)
        return config

    @cached_property
    def _notes(self) -> dict[tuple[str, str], bool]:
        """Warnings about a queue's ``WorkerSettings``: (queue, text), and whether the warning was logged."""
        return {}

    def _note(self, queue: str, text: str) -> None:
        self._notes.setdefault((queue, text), False)

    @cached_property
    def worker_class(self) -> type[Worker]:
        """The class that serves the queues."""
        found: type[Worker] = _attribute(self.worker)
        return found

    @cached_property
    def names(self) -> list[str]:
        """The short names of all queues, sorted. Each module of the package is a queue."""
        return sorted(module.name for module in pkgutil.iter_modules(import_module(self.queues).__path__))

    @property
    def served(self) -> list[str]:
        """The short names of the queues in ``WORKER_QUEUES``, or of all queues if it is not set."""
        return list(self.config.WORKER_QUEUES or self.names)

    @property
    def folders(self) -> list[Path]:
        """The folders with the code of the project and of the library. When it changes, dev workers restart."""
        top = find_spec(self.queues.partition(".")[0])
        found = list(top.submodule_search_locations or ()) if top else []
        return [*map(Path, found), Path(__file__).parent]

    def load(self, queue: str) -> type:
        """Return the completed ``WorkerSettings`` of a queue, by its short name.

        Raises ``ValueError`` if there is no such queue, or if its module has no ``WorkerSettings``.
        """
        if queue not in self.names:
            raise ValueError(f"unknown queue {queue!r}: the queues are {', '.join(self.names)}")
        module = import_module(f"{self.queues}.{queue}")
        settings_class = getattr(module, "WorkerSettings", None)
        if not isinstance(settings_class, type):
            raise ValueError(f"queue {queue}: {module.__name__} has no class WorkerSettings")
        return self.complete(queue, settings_class)  # changes nothing if the module has done it

    def complete(self, queue: str, settings_class: T) -> T:
        """Set the attributes that a ``WorkerSettings`` lacks, and return the class.

        The variables ``WORKER_<QUEUE>_…`` override the attributes of the class, also those that it inherits. Attributes
        that the class lacks come from the settings that all queues share. All are set on the class itself, because the
        command line of arq reads only the class.

        Raises ``ValueError`` if the class names another queue than its module.
        """
        config, queue_name = self.config, keys.QUEUE_PREFIX + queue
        given = attributes(settings_class)
        if given.get("queue_name", queue_name) != queue_name:
            raise ValueError(f"queue {queue}: queue_name has to be {queue_name!r}, not {given['queue_name']!r}")
        serializer = config.serializer
        shared = {
            "queue_name": queue_name,
            "redis_settings": config.redis_settings,
            "job_serializer": serializer.dumps,
            "job_deserializer": serializer.loads,
            "keep_result": config.WORKER_KEEP_RESULT_SECONDS,
            "max_tries": config.WORKER_MAX_TRIES,
            "job_completion_wait": config.WORKER_JOB_COMPLETION_WAIT,
            "health_check_interval": config.WORKER_HEALTH_CHECK_INTERVAL,
            "allow_abort_jobs": True,
        }
        overrides = config.overrides(queue).model_dump(exclude_none=True)
        # Each replica has its own health key: the first replica that stops would delete a key that all share.
        own = {"health_check_key": keys.health(queue_name, socket.gethostname())}
        if (health_key := given.get("health_check_key", own["health_check_key"])) != own["health_check_key"]:
            self._note(queue, f"health_check_key {health_key!r} has no effect, since each replica has a key of its own")
        if _differs(given.get("redis_settings"), config.redis_settings):
            self._note(queue, "redis_settings has no effect, since REDIS_URL says where the workers connect")
        for name, value in (shared | given | own | {key.lower(): value for key, value in overrides.items()}).items():
            setattr(settings_class, name, value)
        return settings_class

    def make_worker(self, queue: str, settings_class: type | None = None, **options: Any) -> Worker:
        """Make the worker of a queue, with the project's pool and settings.

        :param queue: the short name of the queue
        :param settings_class: by default the ``WorkerSettings`` of the queue's module
        :param options: more arguments for the worker's class, which override all others
        """
        config = self.config
        settings_class = self.complete(queue, settings_class) if settings_class else self.load(queue)
        known = parameters(self.worker_class)
        given = attributes(settings_class)
        for name in given.keys() - known:
            if close := get_close_matches(name.lower(), known, n=1, cutoff=_SIMILARITY):
                self._note(queue, f"{name} is no option of a worker and is ignored; is {close[0]} meant?")
        for (of, note), logged in self._notes.items():
            if of == queue and not logged:
                logger.warning("WorkerSettings of %s: %s", queue, note)
                self._notes[of, note] = True
        given.pop("health_check_key")  # is only for `arq --check`; our worker makes its key from `replica`
        shared: dict[str, Any] = {
            "redis_pool": create_pool(config, queue_name=given["queue_name"]),
            "backoff": Backoff(config.WORKER_RETRY_BACKOFF_SECONDS, config.WORKER_RETRY_BACKOFF_MAX_SECONDS),
            "version": config.APP_VERSION,
            "lease": config.WORKER_LEASE_SECONDS,
            "blocked_log": config.WORKER_BLOCKED_LOG_SECONDS,
            "blocked_exit": config.WORKER_BLOCKED_EXIT_SECONDS,
        }
        return self.worker_class(**shared | {name: given[name] for name in given.keys() & known} | options)


@cache
def current() -> Project:
    """Return the project that ``AEGIS_PROJECT`` names. Raises ``ValueError`` if there is none.

    The module may be in the working directory, as for the command line of arq.
    """
    name = os.environ.get(VARIABLE) or DEFAULT
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        # Else the project's own code imports a module that is missing.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{VARIABLE}={name}: there is no such module in {here} or in Python's path") from error
    project = getattr(module, "project", None)
    if not isinstance(project, Project):
        raise ValueError(f"{VARIABLE}={name}: the module has no aegis_worker.project.Project named `project`")
    return project


def configured(queue: str) -> Callable[[T], T]:
    """Class decorator: complete a ``WorkerSettings`` with :meth:`Project.complete`.

    Only the command line of arq needs the decorator. Our own workers complete a class in any case.

    :param queue: the short name of the queue
    """
    return lambda settings_class: current().complete(queue, settings_class)


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _differs(given: RedisSettings | None, ours: RedisSettings) -> bool:
    """Return whether the settings of a class name another server or another database."""
    if given is None:
        return False

    def place(where: RedisSettings) -> Sequence[object]:
        return where.unix_socket_path or (where.host, where.port), where.database

    return place(given) != place(ours)
