"""What is in Redis's databases, as redis/survey.lua counts it."""

from collections.abc import Mapping
from typing import Any

Counts = Mapping[str, Mapping[str, Any]]  #: by database: keys, jobs, running, results, and those by queue: queues, dead


def swapped(counts: Counts, one: str, other: str) -> Counts:
    """Return the counts after two databases have changed places."""
    places = {one: other, other: one}
    return {places.get(database, database): found for database, found in counts.items()}


def flat(counts: Counts | None) -> dict[str, int]:
    """Return each number by what it counts. The marks of running jobs come and go, so they are left out."""
    found = {}
    for database, facts in (counts or {}).items():
        for what, value in facts.items():
            for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                if what != "running":
                    found[f"{what} {name}".strip() + f" in database {database}"] = number
    return found


def differences(expected: Counts | None, found: Counts | None, *, more: bool = False) -> list[str]:
    """Return what is not as expected, a line for each number. With ``more``, greater numbers are no difference."""
    wanted, there = flat(expected), flat(found)
    return [
        f"{what}: {there.get(what, 0)} instead of {wanted.get(what, 0)}"
        for what in sorted(wanted | there)
        if there.get(what, 0) < wanted.get(what, 0) or (not more and there.get(what, 0) > wanted.get(what, 0))
    ]


def described(counts: Counts) -> str:
    """Say what all databases have together."""
    queued, results, dead = (
        sum(sum(each[what].values()) if isinstance(each[what], Mapping) else each[what] for each in counts.values())
        for what in ("queues", "results", "dead")
    )
    return f"{queued} jobs in queues, {results} results, {dead} dead letters"
