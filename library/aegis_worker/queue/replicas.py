"""The health records of replicas in Redis. A registry names the replicas, so nothing scans the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from aegis_worker.queue import keys
from aegis_worker.queue.scripts import Script

FORGET_AFTER_S = 3600  #: a replica that was not seen for so long is removed from the registry
RECORDS_PER_LIFE = 3  #: intervals after which a health record expires


async def record(redis: Redis, queue_name: str, replica: str, state: Mapping[str, Any], *, interval_s: float) -> None:
    """Write the health record of a replica, and add the replica to the registry of its queue.

    :param state: JSON data; others read its ``state`` ("running" while the replica claims jobs) and its ``functions``
        (the names that it knows)
    :param interval_s: seconds until the next record
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
    """Remove a replica that stops from the registry."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.health(queue_name, replica))
        pipe.zrem(keys.replicas(queue_name), replica)
        await pipe.execute()


async def known(redis: Redis, queue_name: str) -> frozenset[str]:
    """Return the names of the functions that replicas know, of all replicas that claim jobs of the queue."""
    replicas = await read(redis, queue_name)
    return frozenset(
        name
        for replica in replicas
        if replica.get("state") == "running" and isinstance(replica.get("functions"), list)
        for name in replica["functions"]
        if isinstance(name, str)
    )


def _state(data: bytes | None) -> dict[str, Any] | None:
    """Return the content of a record, or None if there is none or it cannot be read."""
    try:
        state = json.loads(data or b"null")
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


async def read(redis: Redis, queue_name: str) -> list[dict[str, Any]]:
    """Return the state of each replica of a queue, sorted by name.

    Each has at least ``replica``, ``last_seen_ms`` and ``alive``. ``alive`` is False if the record has expired, until
    the replica leaves the registry, or if the record cannot be read. Then nothing else is known.
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
