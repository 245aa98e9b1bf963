"""The versions of the workers that were deployed, and those whose images are still here."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import configuration, journal
from .configuration import ConfigurationError
from .stack import Stack, is_worker

KEPT = 5  #: versions whose images stay, to roll back to
DEPLOYED = ("deploy", "up")  #: what brings a version in; a rollback goes back to one that was
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")


@dataclass(frozen=True)
class Release:
    """A version, and when and by whom it was brought in last."""

    version: str
    at: float
    by: str


def past(environment: str) -> list[Release]:
    """Return the versions that were brought in, the latest first."""
    found: dict[str, Release] = {}
    for entry in journal.read(environment):
        if entry["event"] in DEPLOYED and entry.get("outcome", "done") == "done":
            found.pop(entry["version"], None)
            found[entry["version"]] = Release(entry["version"], entry["at"], entry["by"])
    return list(reversed(found.values()))


def before(releases: Sequence[Release], version: str) -> str | None:
    """Return the version that was brought in before another, None where there is none."""
    versions = [release.version for release in releases]
    earlier = versions[versions.index(version) + 1 :] if version in versions else versions
    return earlier[0] if earlier else None


def is_deployed(stack: Stack) -> bool:
    """Whether the stack's version came by a deployment or a bundle, and is not one that each `make up` builds anew."""
    return any(
        entry["event"] in ("deploy", "rollback", "load")
        and entry["version"] == stack.version
        and entry.get("outcome", "done") == "done"
        for entry in journal.read(stack.name)
    )


def is_to_be_mended(stack: Stack) -> bool:
    """Whether the version failed when it was deployed last, and came by no bundle: its image may be at fault."""
    tries = [entry for entry in journal.read(stack.name) if entry.get("version") == stack.version]
    return bool(tries) and tries[-1].get("outcome") == "failed" and all(entry["event"] != "load" for entry in tries)


def images(stack: Stack, model: dict[str, Any] | None = None) -> list[str]:
    """Return the images of the workers at the stack's version."""
    services = (model or stack.model())["services"]
    return sorted({service["image"] for name, service in services.items() if is_worker(name)})


def are_here(stack: Stack) -> bool:
    """Whether the images of the stack's version are on this machine."""
    return stack.ask(["docker", "image", "inspect", *images(stack)]).returncode == 0


def next_version(stack: Stack) -> str:
    """Name what the checkout holds: its commit, with the time where something is changed in it."""
    described = stack.ask(["git", "describe", "--always", "--dirty=-changed"]) if shutil.which("git") else None
    version = described.stdout.strip() if described and described.returncode == 0 else "changed"
    return f"{version}-{time.strftime('%Y%m%d%H%M%S')}" if version.endswith("changed") else version


def check(version: str) -> str:
    """Return a version that can be an image's tag. Raises ``ConfigurationError`` for any other."""
    if not _TAG.fullmatch(version):
        raise ConfigurationError(f"VERSION={version}: a version has letters, digits, dots and dashes, as in 1.4.2")
    return version


def prune(stack: Stack) -> None:
    """Remove the images of versions that are too old to go back to, here and in any other environment."""
    kept = {stack.version}
    for name in configuration.names():
        kept |= {release.version for release in past(name)[:KEPT]}
        with suppress(ConfigurationError):
            kept.add(configuration.load(name).values["APP_VERSION"])
    for release in past(stack.name):
        if release.version not in kept:
            old = stack.given(APP_VERSION=release.version)
            if are_here(old):
                stack.ask(["docker", "image", "rm", *images(old)])


def table(stack: Stack, _: argparse.Namespace) -> int:
    found = past(stack.name)
    if not found:
        print(f"nothing was deployed yet: `make deploy ENV={stack.name}`")
        return 0
    rows = [("version", "deployed", "by", "")]
    for release in found:
        here = "" if are_here(stack.given(APP_VERSION=release.version)) else "its image is gone"
        state = "deployed now" if release.version == stack.version else here
        rows.append((release.version, time.strftime("%Y-%m-%d %H:%M", time.localtime(release.at)), release.by, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
