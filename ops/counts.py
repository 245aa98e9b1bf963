"""What is in Redis's databases, as redis/survey.lua counts it: to say, and to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Counts = Mapping[str, Mapping[str, Any]]  #: by database: keys, jobs, running, results, and those by queue: queues, dead


def swapped(counts: Counts, one: str, other: str) -> Counts:
    """Return the counts once two databases have changed places."""
    places = {one: other, other: one}
    return {places.get(database, database): found for database, found in counts.items()}


def flat(counts: Counts) -> dict[str, int]:
    """Return each number by what it counts, without marks of running jobs, which come and go."""
    found = {}
    for database, facts in counts.items():
        for what, value in facts.items():
            for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                if what != "running":
                    found[f"{what} {name}".strip() + f" in database {database}"] = number
    return found


def differences(expected: Counts, found: Counts, *, more: bool = False) -> list[str]:
    """Return what is not as expected, for a person to read; ``more`` than expected may be no difference."""
    wanted, there = flat(expected), flat(found)
    return [
        f"{what}: {there.get(what, 0)} instead of {wanted.get(what, 0)}"
        for what in sorted(wanted | there)
        if there.get(what, 0) < wanted.get(what, 0) or (not more and there.get(what, 0) > wanted.get(what, 0))
    ]


def said(counts: Counts) -> str:
    """Return the counts of all databases together, in words."""
    queued, results, dead = (
        sum(sum(each[what].values()) if isinstance(each[what], Mapping) else each[what] for each in counts.values())
        for what in ("queues", "results", "dead")
    )
    return f"{queued} jobs in queues, {results} results, {dead} dead letters"
