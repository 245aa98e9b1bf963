"""What ends a command early, and the connection that every command but ``worker`` works with.

Settings are checked when ``app.core.config`` is imported, so that happens inside the functions here: this module is
what reports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

if TYPE_CHECKING:
    from arq.connections import ArqRedis
    from pydantic_core import ErrorDetails

T = TypeVar("T")


class Failure(Exception):
    """Ends the command with one line on stderr: 1 where the answer is no, 2 where something has to be mended first."""

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def run(work: Callable[[ArqRedis], Awaitable[T]]) -> T:
    """Do a command's work with a connection to Redis, which is closed after it.

    A person waits for the answer, so Redis has as long to reply as it has to accept a connection.
    """
    from arq.jobs import SerializationError
    from redis.exceptions import RedisError

    from app.core.config import settings
    from app.core.redis import create_pool, explain

    async def session() -> T:
        pool = create_pool(settings.model_copy(update={"REDIS_SOCKET_TIMEOUT": settings.REDIS_CONNECTION_TIMEOUT}))
        try:
            return await work(pool)
        finally:
            await pool.aclose(close_connection_pool=True)

    try:
        return asyncio.run(session())
    except (RedisError, OSError) as error:
        raise Failure(explain(error)) from error
    except SerializationError as error:
        raise Failure(f"{error}: {error.__cause__}") from error


def known(asked: Iterable[str]) -> list[str]:
    """Return the names, each once, if all of them are queues."""
    from app.components.worker import queues

    names = list(dict.fromkeys(asked))
    if unknown := [name for name in names if name not in queues.names()]:
        raise Failure(f"unknown queue {', '.join(unknown)}: the queues are {', '.join(queues.names())}")
    return names


def explain_settings(error: ValidationError | SettingsError) -> list[str]:
    """Return a line for each setting that has to be mended: its variable, its value unless it is a secret, and how."""
    if isinstance(error, SettingsError):
        return [f"{error}: {error.__cause__}"]
    if error.title == "QueueOverrides":
        return _overrides_to_mend()
    return [_line(problem) for problem in error.errors(include_url=False)]


def _overrides_to_mend() -> list[str]:
    """Return the lines of all queues: the error at hand is that of one, and does not name it."""
    from app.components.worker import queues
    from app.core.config import settings

    lines = []
    for name in queues.names():
        try:
            settings.overrides(name)
        except ValidationError as error:
            lines += [_line(problem, f"WORKER_{name.upper()}_") for problem in error.errors(include_url=False)]
    return lines


def _line(problem: ErrorDetails, prefix: str = "") -> str:
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text  # it is about several variables, and names them
    name = prefix + ".".join(map(str, problem["loc"]))
    return f"{name}={'***' if name.endswith(('PASSWORD', '_KEY')) else problem['input']}: {text}"
