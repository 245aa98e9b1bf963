"""`make doctor`: it checks the host, the configuration, the secrets and what runs, and says how to fix each problem.

It changes nothing. It works before the first `make up`, without Docker, and on a stack that is broken.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import credentials, host, queues, rules, running
from .facts import Facts
from .finding import Finding, Unavailable, fail

Check = Callable[[Facts], Finding | None]

GROUPS: dict[str, Sequence[Check]] = {
    "host": host.CHECKS,
    "configuration": (*rules.CHECKS, *host.ROOM),
    "secrets": credentials.CHECKS,
    "running": running.CHECKS,
    "queues": queues.CHECKS,
}
COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    group: str
    check: str
    finding: Finding


def run(options: argparse.Namespace) -> int:
    """Print a line for each check. Return 1 if one fails, else 0."""
    lines: list[Line] = []
    for line in examine(Facts(options.env)):
        if not options.json:
            _print(line, head=not lines or lines[-1].group != line.group)
        lines.append(line)
    statuses: list[str] = [line.finding.status for line in lines]
    if options.json:
        print(json.dumps([{"check": line.check, **vars(line.finding)} for line in lines], indent=2, ensure_ascii=False))
    else:
        counts = ", ".join(f"{statuses.count(each)} {each}" for each in COLOURS)
        left_out = {check.__name__ for checks in GROUPS.values() for check in checks} - {line.check for line in lines}
        why = "because something that they need is missing"
        print(f"\n{counts}" + (f"; {len(left_out)} skipped, {why}" if left_out else ""))
    return int("fail" in statuses)


def examine(facts: Facts) -> Iterator[Line]:
    """Make every check that can be made, and give what it finds.

    If a fact cannot be had, the first check that needs it says so. Other checks that need it are left out.
    """
    reported: list[Unavailable] = []
    for group, checks in GROUPS.items():
        for check in checks:
            for finding in findings(check, facts, reported):
                yield Line(group, check.__name__, finding)


def findings(check: Check, facts: Facts, reported: list[Unavailable]) -> Sequence[Finding]:
    try:
        finding = check(facts)
    except Unavailable as reason:
        if reason in reported:
            return ()
        reported.append(reason)
        return reason.findings
    except Exception as error:
        what = f"the check itself failed: {type(error).__name__}: {error}"
        return (fail(what, f"check {check.__name__} in ops/look/doctor/"),)
    return () if finding is None else (finding,)


def _print(line: Line, *, head: bool) -> None:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(len(check.__name__) for checks in GROUPS.values() for check in checks)
    if head:
        print(line.group, flush=True)
    status = f"{line.finding.status:4}"
    if colour:
        status = f"\033[{COLOURS[line.finding.status]}m{status}\033[0m"
    fix = f" → {line.finding.fix}" if line.finding.fix else ""
    print(f"  {status}  {line.check.replace('_', ' '):{width}}  {line.finding.fact}{fix}", flush=True)
