"""What a worker asks of its connections beyond what redis-py and arq give them."""

from __future__ import annotations

from redis.asyncio import ConnectionPool
from redis.connection import HiredisRespSerializer

SOCKET_TIMEOUT_S = 10.0  #: arq's own pool has none, and waits for ever on a connection that leads nowhere


class _Packed:
    """Packs commands in C: redis-py's blocking connections do, its asyncio ones do not; a seventh of a job's CPU."""

    pack_command = staticmethod(HiredisRespSerializer().pack)


async def prepare(pool: ConnectionPool) -> None:
    """Have a pool's connections pack in C and time out; those that it has and nobody uses are closed."""
    base = pool.connection_class
    if issubclass(base, _Packed):
        return
    pool.connection_class = type(base.__name__, (_Packed, base), {})
    if pool.connection_kwargs.get("socket_timeout") is None:
        pool.connection_kwargs["socket_timeout"] = SOCKET_TIMEOUT_S
    await pool.disconnect(inuse_connections=False)
    pool.reset()  # type: ignore[no-untyped-call]
