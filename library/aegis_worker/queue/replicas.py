"""What each replica says of itself in Redis, and how to read it without a scan of the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Script

FORGET_AFTER_S = 3600  #: a replica not seen for so long leaves the registry
RECORDS_PER_LIFE = 3  #: a replica that misses this many records is taken for dead


async def record(redis: Redis, queue_name: str, replica: str, state: Mapping[str, Any], *, interval_s: float) -> None:
    """Write a replica's state, which has to be JSON data, and enter the replica in its queue's registry.

    Others rely on its ``state``, "running" while it claims jobs, and on its ``functions``, the names of those it knows.
    """
    await Script(redis.execute_command, "record")(
        keys=[keys.health(queue_name, replica), keys.replicas(queue_name)],
        args=[
            replica,
            json.dumps(state),
            int(max(1, interval_s * RECORDS_PER_LIFE) * 1000),
            int(max(FORGET_AFTER_S, interval_s * RECORDS_PER_LIFE) * 1000),
        ],
    )


async def forget(redis: Redis, queue_name: str, replica: str) -> None:
    """Take a replica that stops in good order out of the registry."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.health(queue_name, replica))
        pipe.zrem(keys.replicas(queue_name), replica)
        await pipe.execute()


async def known(redis: Redis, queue_name: str) -> frozenset[str]:
    """Return the names of all functions that replicas know which claim jobs of the queue."""
    replicas = await read(redis, queue_name)
    return frozenset(
        name
        for replica in replicas
        if replica.get("state") == "running" and isinstance(replica.get("functions"), list)
        for name in replica["functions"]
        if isinstance(name, str)
    )


def _state(data: bytes | None) -> dict[str, Any] | None:
    """Return what a record says, None where there is none or it is no record of ours."""
    try:
        state = json.loads(data or b"null")
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


async def read(redis: Redis, queue_name: str) -> list[dict[str, Any]]:
    """Return the state of each of a queue's replicas, in order of name.

    Each has at least ``replica`` and ``last_seen_ms``, and ``alive``: False for one that vanished without a word
    in the last hour, or whose record cannot be read, of which nothing else is known.
    """
    seen = await redis.zrange(keys.replicas(queue_name), 0, -1, withscores=True)
    if not seen:
        return []
    records = await redis.mget([keys.health(queue_name, name.decode()) for name, _ in seen])
    return sorted(
        (
            {
                **(state or {}),
                "replica": name.decode(),
                "last_seen_ms": int(last_seen),
                "alive": state is not None,
            }
            for (name, last_seen), state in zip(seen, map(_state, records), strict=True)
        ),
        key=lambda replica: str(replica["replica"]),
    )
