"""What ends a command early, and the connection that every command but ``worker`` works with.

A project's settings are checked when they are first asked for, which is inside the functions here: this module is what
reports what is wrong with them.
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
    """Ends the command with one line on stderr: 1 where the answer is no, 2 where something has to be fixed first."""

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def project() -> Project:
    """Return the project that ``AEGIS_PROJECT`` names."""
    from aegis_worker.project import current

    try:
        return current()
    except ValidationError:
        raise
    except ValueError as error:
        raise Failure(str(error)) from error


def run(work: Callable[[ArqRedis], Awaitable[T]]) -> T:
    """Do a command's work with a connection to Redis, which is closed after it.

    A person waits for the answer, so Redis has as long to reply as it has to accept a connection.
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
    """Return ``loads`` that imports the tasks, which register classes, but only where it fails without them."""

    def read(data: bytes) -> Any:
        try:
            return loads(data)
        except Exception:
            load_all()
            return loads(data)

    return read


def load(names: Iterable[str]) -> tuple[dict[str, type], dict[str, str]]:
    """Return the queues' ``WorkerSettings``; and for each that has none here, its extra is not installed say, why."""
    loaded, missing = {}, {}
    for name in names:
        try:
            loaded[name] = project().load(name)
        except ImportError as error:
            missing[name] = str(error)
    return loaded, missing


@cache
def load_all() -> tuple[dict[str, type], dict[str, str]]:
    """Return what ``load`` does, of all queues."""
    return load(project().names)


def known(asked: Iterable[str]) -> list[str]:
    """Return the names, each once, if all of them are queues."""
    names, there = list(dict.fromkeys(asked)), project().names
    if unknown := [name for name in names if name not in there]:
        raise Failure(f"unknown queue {', '.join(unknown)}: the queues are {', '.join(there)}")
    return names


def explain_settings(error: ValidationError | SettingsError) -> list[str]:
    """Return a line for each setting that has to be changed: its variable, its value unless it is a secret, and how."""
    if isinstance(error, SettingsError):
        return [f"{error}: {error.__cause__}"]
    if error.title == "QueueOverrides":
        return _overrides_to_change()
    return [_line(problem) for problem in error.errors(include_url=False)]


def _overrides_to_change() -> list[str]:
    """Return the lines of all queues: the error at hand is that of one, and does not name it."""
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
