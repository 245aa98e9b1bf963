"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """How it stands, the fact that says so, and the mend: a command, or a line to edit."""

    status: Literal["ok", "warn", "fail"]
    fact: str
    mend: str = ""


class Unavailable(Exception):
    """A fact cannot be had. What has to be mended for it is told once, however many checks want the fact."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(*findings)
        self.findings = findings


def ok(fact: str) -> Finding:
    return Finding("ok", fact)


def warn(fact: str, mend: str) -> Finding:
    return Finding("warn", fact, mend)


def fail(fact: str, mend: str) -> Finding:
    return Finding("fail", fact, mend)
