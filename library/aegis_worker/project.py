"""A team's project, as the library sees it: its settings, its queues, and the worker that serves each of them.

The library finds a project by the environment variable ``AEGIS_PROJECT``, as Flask finds an application by
``FLASK_APP``. It names a module, by default ``app.project``, that has a :class:`Project` in its attribute ``project``.
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

_NEARLY = 0.8  #: how much alike, from 0 to 1, an unknown attribute and an option are that it is meant for


@dataclass(frozen=True)
class Project:
    """What a project consists of, by names that are imported when they are needed.

    :param settings: ``module:attribute`` of the one instance of its settings
    :param queues: the package with a module for each queue, each with a class ``WorkerSettings``
    :param worker: ``module:attribute`` of the class that serves the queues, which inherits ``aegis_worker.Worker``
    """

    settings: str
    queues: str
    worker: str = "aegis_worker:Worker"

    @cached_property
    def config(self) -> Settings:
        """The project's settings. Raises pydantic's ``ValidationError`` where they are not valid."""
        config: Settings = _attribute(self.settings)
        return config

    @cached_property
    def _notes(self) -> dict[tuple[str, str], bool]:
        """By queue and text, what of its ``WorkerSettings`` has no effect, and whether that was logged."""
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
        """The short names of all queues, sorted: a module that is added to the package is a queue."""
        return sorted(module.name for module in pkgutil.iter_modules(import_module(self.queues).__path__))

    @property
    def served(self) -> list[str]:
        """The short names of the queues that ``WORKER_QUEUES`` names, or of all."""
        return list(self.config.WORKER_QUEUES or self.names)

    @property
    def folders(self) -> list[Path]:
        """The folders with code that a change of makes a running worker old: the project's, and the library's."""
        top = find_spec(self.queues.partition(".")[0])
        found = list(top.submodule_search_locations or ()) if top else []
        return [*map(Path, found), Path(__file__).parent]

    def load(self, queue: str) -> type:
        """Return the completed ``WorkerSettings`` of a queue, by its short name.

        Raises ``ValueError`` where there is no queue of this name, or its module has no ``WorkerSettings``.
        """
        if queue not in self.names:
            raise ValueError(f"unknown queue {queue!r}: the queues are {', '.join(self.names)}")
        module = import_module(f"{self.queues}.{queue}")
        settings_class = getattr(module, "WorkerSettings", None)
        if not isinstance(settings_class, type):
            raise ValueError(f"queue {queue}: {module.__name__} has no class WorkerSettings")
        return self.complete(queue, settings_class)  # changes nothing where the module has done it

    def complete(self, queue: str, settings_class: T) -> T:
        """Give a ``WorkerSettings`` all that it leaves out, and return it.

        What the class says, or inherits, is its default, and ``WORKER_<QUEUE>_…`` variables win over it. What it leaves
        out comes from the settings that all queues share. All of it is set on the class itself, because arq's own
        command line reads nothing else.

        Raises ``ValueError`` where the class names another queue than its module.
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
        # A health key for each replica, whatever the class says: the first replica that stops deletes one they share.
        own = {"health_check_key": keys.health(queue_name, socket.gethostname())}
        if (said := given.get("health_check_key", own["health_check_key"])) != own["health_check_key"]:
            self._note(queue, f"health_check_key {said!r} has no effect, since each replica has a key of its own")
        if _elsewhere(given.get("redis_settings"), config.redis_settings):
            self._note(queue, "redis_settings has no effect, since REDIS_URL says where the workers connect")
        for name, value in (shared | given | own | {key.lower(): value for key, value in overrides.items()}).items():
            setattr(settings_class, name, value)
        return settings_class

    def make_worker(self, queue: str, settings_class: type | None = None, **options: Any) -> Worker:
        """Make the worker of a queue, with the project's pool and settings.

        :param settings_class: what to serve, by default the ``WorkerSettings`` of the queue's module
        :param options: more arguments of the worker's class, which win over all others
        """
        config = self.config
        settings_class = self.complete(queue, settings_class) if settings_class else self.load(queue)
        known = parameters(self.worker_class)
        given = attributes(settings_class)
        for name in given.keys() - known:
            if close := get_close_matches(name.lower(), known, n=1, cutoff=_NEARLY):
                self._note(queue, f"{name} is no option of a worker and is ignored; is {close[0]} meant?")
        for (of, note), logged in self._notes.items():
            if of == queue and not logged:
                logger.warning("WorkerSettings of %s: %s", queue, note)
                self._notes[of, note] = True
        given.pop("health_check_key")  # names this host's first process, for `arq --check`; ours is made of `replica`
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
    """Return the project that ``AEGIS_PROJECT`` names. Raises ``ValueError`` where there is none.

    The working directory is searched too, as arq's own command line does.
    """
    name = os.environ.get(VARIABLE) or DEFAULT
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):  # a module that the project's own code lacks
            raise
        raise ValueError(f"{VARIABLE}={name}: there is no such module in {here} or on Python's path") from error
    project = getattr(module, "project", None)
    if not isinstance(project, Project):
        raise ValueError(f"{VARIABLE}={name}: the module has no `project` that is an aegis_worker.project.Project")
    return project


def configured(queue: str) -> Callable[[T], T]:
    """Class decorator: complete a ``WorkerSettings`` from the environment, as :meth:`Project.complete` says.

    Our own workers complete a class that lacks the decorator as well. It is there for arq's own command line.
    """
    return lambda settings_class: current().complete(queue, settings_class)


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _elsewhere(given: RedisSettings | None, ours: RedisSettings) -> bool:
    """Whether a class's own settings lead to another server or database; what they lack besides is of no matter."""
    if given is None:
        return False

    def place(where: RedisSettings) -> Sequence[object]:
        return where.unix_socket_path or (where.host, where.port), where.database

    return place(given) != place(ours)
