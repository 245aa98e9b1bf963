"""What a check finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of a check: its status, the fact that was found, and the fix, which is a command or a line to edit."""

    status: Literal["ok", "warn", "fail"]
    fact: str
    fix: str = ""


class Unavailable(Exception):
    """A fact is not available. Its findings are reported once, even if several checks need the fact.

    Without findings, this host, environment or stack does not have such a fact, and nothing is reported.
    """

    def __init__(self, *findings: Finding) -> None:
        super().__init__(*findings)
        self.findings = findings


def ok(fact: str) -> Finding:
    return Finding("ok", fact)


def warn(fact: str, fix: str) -> Finding:
    return Finding("warn", fact, fix)


def fail(fact: str, fix: str) -> Finding:
    return Finding("fail", fact, fix)
