"""Errors that end a command, and the connection to Redis that all commands except ``worker`` use.

Settings are checked when they are used for the first time. This happens inside the functions of this module, so their
errors are reported here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

if TYPE_CHECKING:
    from arq.connections import ArqRedis
    from pydantic_core import ErrorDetails

    from aegis_worker.project import Project

T = TypeVar("T")


class Failure(Exception):
    """Ends the command with one line on stderr.

    :param exit_code: 1 if the answer is no, 2 if something has to be fixed first
    """

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def project() -> Project:
    """Return the project that ``AEGIS_PROJECT`` names. Raises ``Failure`` if there is none."""
    from aegis_worker.project import current

    try:
        return current()
    except ValidationError:
        raise
    except ValueError as error:
        raise Failure(str(error)) from error


def run(work: Callable[[ArqRedis], Awaitable[T]]) -> T:
    """Do the work of a command with a connection to Redis, and close the connection. Raises ``Failure``.

    A reply may take ``REDIS_CONNECTION_TIMEOUT`` seconds, because a person waits for it.
    """
    from arq.jobs import SerializationError
    from redis.exceptions import RedisError

    from aegis_worker.redis.pool import create_pool, explain

    config = project().config

    async def session() -> T:
        pool = create_pool(config.model_copy(update={"REDIS_SOCKET_TIMEOUT": config.REDIS_CONNECTION_TIMEOUT}))
        pool.job_deserializer = _with_tasks(config.serializer.loads)
        try:
            return await work(pool)
        finally:
            await pool.aclose(close_connection_pool=True)

    try:
        return asyncio.run(session())
    except (RedisError, OSError) as error:
        raise Failure(explain(error, config)) from error
    except SerializationError as error:
        raise Failure(f"{error}: {error.__cause__}") from error


def _with_tasks(loads: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a ``loads`` that tries again with all tasks imported if it fails, because tasks register classes."""

    def read(data: bytes) -> Any:
        try:
            return loads(data)
        except Exception:
            load_all()
            return loads(data)

    return read


def load(names: Iterable[str]) -> tuple[dict[str, type], dict[str, str]]:
    """Return the ``WorkerSettings`` of queues; and why a queue cannot be loaded, for example for want of an extra."""
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = project().load(name)
        except ImportError as error:
            missing[name] = str(error)
    return loaded, missing


@cache
def load_all() -> tuple[dict[str, type], dict[str, str]]:
    """Call ``load`` for all queues."""
    return load(project().names)


def known(asked: Iterable[str]) -> list[str]:
    """Return the names without duplicates. Raises ``Failure`` if one is not a queue."""
    names, there = list(dict.fromkeys(asked)), project().names
    if unknown := [name for name in names if name not in there]:
        raise Failure(f"unknown queue {', '.join(unknown)}: the queues are {', '.join(there)}")
    return names


def explain_settings(error: ValidationError | SettingsError) -> list[str]:
    """Return a line for each setting that is wrong: its variable, its value if it is no secret, and what is wrong."""
    if isinstance(error, SettingsError):
        return [f"{error}: {error.__cause__}"]
    if error.title == "QueueOverrides":
        return _overrides_to_change()
    return [_line(problem) for problem in error.errors(include_url=False)]


def _overrides_to_change() -> list[str]:
    """Return the lines for all queues: an error of one queue does not name the queue."""
    lines = []
    for name in project().names:
        try:
            project().config.overrides(name)
        except ValidationError as error:
            lines += [_line(problem, f"WORKER_{name.upper()}_") for problem in error.errors(include_url=False)]
    return lines


def _line(problem: ErrorDetails, prefix: str = "") -> str:
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text  # it is about several variables, and names them
    name = prefix + ".".join(map(str, problem["loc"]))
    return f"{name}={'***' if name.endswith(('PASSWORD', '_KEY')) else problem['input']}: {text}"
