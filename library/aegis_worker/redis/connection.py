"""Makes the connections of redis-py and arq safe for a worker: with time-outs, and correct after a failover."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError, ReadOnlyError

SOCKET_TIMEOUT_S = 10.0  #: arq's pool has none, so it would wait forever if the other end is gone


class _FailoverAware:
    """A mixin for the connection class of one pool."""

    _age = 0  #: of the pool: increases each time that its server has become read-only
    _born = 0  #: the pool's age when this connection was made

    async def connect(self) -> None:
        """Connect, or connect again after a failover.

        redis-py calls this also when it takes a connection from the pool. After a failover, an old connection is still
        open, but leads to a server that is no longer the master.
        """
        if self._born < self._age:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            self._born = self._age
        await super().connect()  # type: ignore[misc]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:  # uvloop raises it if the transport is closed
            raise ConnectionError(str(error)) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ReadOnlyError:  # do not close it at once: more replies of a pipeline may follow
            if self._born == self._age:
                type(self)._age += 1
            raise


async def connect(settings: RedisSettings | None, **options: Any) -> ArqRedis:
    """Call arq's ``create_pool`` with a limit of time, which allows for all its tries.

    Raises the errors of ``create_pool``, and ``TimeoutError``.
    """
    settings = settings or RedisSettings()
    each_s = settings.conn_timeout + settings.conn_retry_delay
    async with asyncio.timeout((settings.conn_retries + 1) * each_s + SOCKET_TIMEOUT_S):
        return await create_pool(settings, **options)


async def prepare(pool: ConnectionPool) -> None:
    """Make the connections of a pool time out, raise redis-py's errors, and follow the master after a failover.

    Connections that the pool has already, and that nobody uses, are closed.
    """
    base = pool.connection_class
    if issubclass(base, _FailoverAware):
        return
    pool.connection_class = type(base.__name__, (_FailoverAware, base), {})
    if pool.connection_kwargs.get("socket_timeout") is None:
        pool.connection_kwargs["socket_timeout"] = SOCKET_TIMEOUT_S
    await pool.disconnect(inuse_connections=False)
    pool.reset()  # type: ignore[no-untyped-call]
