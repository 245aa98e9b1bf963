"""Limits that depend on one another: what the env files, and any layer above them, have to keep to."""

STOP_MARGIN_S = 12  #: a worker needs so long after its drain, to give jobs back and to shut down
FORK_ROOM = 1.5  #: Redis forks to save, and what changes meanwhile is in memory twice


def least_grace_s(drain_s: int) -> int:
    """Return how long Docker has to wait before it kills a worker that drains for so long."""
    return drain_s + STOP_MARGIN_S


def has_room_to_fork(maxmemory: int, limit: int) -> bool:
    """Return whether a Redis with this maxmemory can save within the memory limit of its container."""
    return maxmemory * FORK_ROOM <= limit
