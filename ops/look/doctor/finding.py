"""What a check finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of a check: its status, the fact behind it, and the mend, which is a command or a line to edit."""

    status: Literal["ok", "warn", "fail"]
    fact: str
    mend: str = ""


class Unavailable(Exception):
    """A fact cannot be had. What has to be mended is said once, however many checks need the fact.

    Without findings it is a fact that this host, environment or stack does not have, and nothing is said.
    """

    def __init__(self, *findings: Finding) -> None:
        super().__init__(*findings)
        self.findings = findings


def ok(fact: str) -> Finding:
    return Finding("ok", fact)


def warn(fact: str, mend: str) -> Finding:
    return Finding("warn", fact, mend)


def fail(fact: str, mend: str) -> Finding:
    return Finding("fail", fact, mend)
