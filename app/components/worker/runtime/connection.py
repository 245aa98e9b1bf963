"""What a worker asks of its connections beyond what redis-py and arq give them."""

from __future__ import annotations

from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError

SOCKET_TIMEOUT_S = 10.0  #: arq's own pool has none, and waits for ever on a connection that leads nowhere


class _Translated:
    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:  # uvloop's word for a transport that was closed
            raise ConnectionError(str(error)) from error


async def prepare(pool: ConnectionPool) -> None:
    """Have a pool's connections time out, and fail as others do; those that it has and nobody uses are closed."""
    base = pool.connection_class
    if issubclass(base, _Translated):
        return
    pool.connection_class = type(base.__name__, (_Translated, base), {})
    if pool.connection_kwargs.get("socket_timeout") is None:
        pool.connection_kwargs["socket_timeout"] = SOCKET_TIMEOUT_S
    await pool.disconnect(inuse_connections=False)
    pool.reset()  # type: ignore[no-untyped-call]
