"""The versions of the workers: which were deployed, and which images are still here."""

import argparse
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..config import OpsError
from ..config.environment import names
from ..config.load import load
from ..engine import journal, terminal
from ..engine.stack import Stack, is_worker

KEPT = 5  #: versions whose images stay, so that a rollback finds them
DEPLOYED = ("deploy", "up")  #: what a rollback can go back to
BROUGHT_IN = ("deploy", "rollback", "load")  #: what `make up` does not build
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")


@dataclass(frozen=True)
class Release:
    """A version, and when and by whom it was brought in last."""

    version: str
    at: float
    by: str


def past(name: str) -> list[Release]:
    """Return the versions that were brought in to an environment, the latest first."""
    found: dict[str, Release] = {}
    for entry in journal.read(name):
        if entry["event"] in DEPLOYED and journal.is_done(entry):
            found.pop(entry["version"], None)
            found[entry["version"]] = Release(entry["version"], entry["at"], entry["by"])
    return list(reversed(found.values()))


def before(releases: Sequence[Release], version: str) -> str | None:
    """Return the version that was brought in before this one, or None."""
    versions = [release.version for release in releases]
    earlier = versions[versions.index(version) + 1 :] if version in versions else versions
    return earlier[0] if earlier else None


def is_deployed(stack: Stack) -> bool:
    """Return whether the version came by a deployment or a bundle. Any other is built again by each `make up`."""
    done = (entry for entry in journal.read(stack.name) if journal.is_done(entry))
    return any(entry["event"] in BROUGHT_IN and entry["version"] == stack.version for entry in done)


def is_to_be_replaced(stack: Stack) -> bool:
    """Return whether the version's last deployment failed, and it came by no bundle. Its image may be the cause."""
    tries = [entry for entry in journal.read(stack.name) if entry.get("version") == stack.version]
    failed = tries[-1:] and tries[-1].get("outcome") == journal.FAILED
    return bool(failed) and all(entry["event"] != "load" for entry in tries)


def images(stack: Stack) -> list[str]:
    """Return the images of the workers at the stack's version."""
    return sorted({service["image"] for name, service in stack.model()["services"].items() if is_worker(name)})


def are_here(stack: Stack) -> bool:
    """Return whether the images of the stack's version are on this machine."""
    return stack.ask(["docker", "image", "inspect", *images(stack)]).returncode == 0


def next_version(stack: Stack) -> str:
    """Return a name for what the checkout holds: its commit, with the time if something is changed in it."""
    described = stack.ask(["git", "describe", "--always", "--dirty=-changed"])
    version = "changed" if described.returncode else described.stdout.strip()
    return f"{version}-{time.strftime('%Y%m%d%H%M%S')}" if version.endswith("changed") else version


def check(version: str) -> str:
    """Return the version if it can be an image's tag, else raise ``OpsError``."""
    if not _TAG.fullmatch(version):
        raise OpsError(f"VERSION={version}: a version has letters, digits, dots and dashes, as in 1.4.2")
    return version


def prune(stack: Stack) -> None:
    """Remove the images of versions that no environment can go back to any more."""
    kept = {stack.version}
    for name in names():
        kept |= {release.version for release in past(name)[:KEPT]}
        with suppress(OpsError):
            kept.add(load(name).values["APP_VERSION"])
    for release in past(stack.name):
        if release.version not in kept:
            old = stack.with_variables(APP_VERSION=release.version)
            if are_here(old):
                stack.ask(["docker", "image", "rm", *images(old)])


def table(stack: Stack, _: argparse.Namespace) -> int:
    found = past(stack.name)
    if not found:
        print(f"nothing was deployed yet: `make deploy ENV={stack.name}`")
        return 0
    rows = [("version", "deployed", "by", "")]
    for release in found:
        here = "" if are_here(stack.with_variables(APP_VERSION=release.version)) else "its image is gone"
        state = "deployed now" if release.version == stack.version else here
        rows.append((release.version, time.strftime("%Y-%m-%d %H:%M", time.localtime(release.at)), release.by, state))
    print(terminal.table(rows))
    return 0
