"""What a worker asks of its connections beyond what redis-py and arq give them."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError, ReadOnlyError

SOCKET_TIMEOUT_S = 10.0  #: arq's own pool has none, and waits for ever on a connection that leads nowhere


class _Translated:
    """Mixed into a pool's connection class, which is of that pool alone."""

    _age = 0  #: of the pool: one more each time that its server turns out to be a replica
    _born = 0  #: the pool's age when this connection was made

    async def connect(self) -> None:
        """Called also when a connection is taken from the pool: after a failover, one that stays open leads to what was
        the master."""
        if self._born < self._age:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            self._born = self._age
        await super().connect()  # type: ignore[misc]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:  # uvloop's word for a transport that was closed
            raise ConnectionError(str(error)) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ReadOnlyError:  # not closed at once: more replies of a pipeline may follow
            if self._born == self._age:
                type(self)._age += 1
            raise


async def connect(settings: RedisSettings | None, **options: Any) -> ArqRedis:
    """arq's ``create_pool``, which has all its tries but does not wait for ever for a server that says nothing.

    Raises what that raises, and ``TimeoutError``.
    """
    settings = settings or RedisSettings()
    each_s = settings.conn_timeout + settings.conn_retry_delay
    async with asyncio.timeout((settings.conn_retries + 1) * each_s + SOCKET_TIMEOUT_S):
        return await create_pool(settings, **options)


async def prepare(pool: ConnectionPool) -> None:
    """Have a pool's connections time out, fail as others do, and follow the master after a failover; those that it has
    and nobody uses are closed."""
    base = pool.connection_class
    if issubclass(base, _Translated):
        return
    pool.connection_class = type(base.__name__, (_Translated, base), {})
    if pool.connection_kwargs.get("socket_timeout") is None:
        pool.connection_kwargs["socket_timeout"] = SOCKET_TIMEOUT_S
    await pool.disconnect(inuse_connections=False)
    pool.reset()  # type: ignore[no-untyped-call]
