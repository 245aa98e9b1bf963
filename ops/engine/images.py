"""Base images. On a machine that no image registry answers, they are built from Debian's packages."""

import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config import OpsError
from . import shell
from .stack import Stack
from .terminal import say

SUITES = {12: "bookworm", 13: "trixie"}

# Owner of the data, as in the official Redis and Valkey images.
DATA_OWNER = "999:1000"

# A third of the tree, which no container reads. It is removed at the end: with dpkg's path-exclude, mmdebstrap would
# filter every single package, and that takes longer than the rest of the build.
TRIM = (
    'cd "$1" && find usr/share/doc -type f ! -name copyright -delete && rm -rf usr/share/man usr/share/locale '
    "usr/share/i18n usr/share/info usr/share/lintian usr/share/bash-completion usr/lib/*/gconv "
    "usr/lib/python3*/test usr/lib/python3*/pydoc_data var/cache/debconf/* var/log/*"
)


@dataclass(frozen=True)
class Family:
    """Where the stand-ins for a family of images come from.

    The first package gives the image its version. A server's package has the name of its command.
    """

    debian: int
    packages: tuple[str, ...]
    user: str | None = None  # a server's: owns /data

    @property
    def package(self) -> str:
        return self.packages[0]


# As in the official image. Compiled wheels need libstdc++.
PYTHON = ("python3", "python3-venv", "ca-certificates", "tzdata", "libstdc++6")

FAMILIES = {
    "python:3.13": Family(13, PYTHON),
    "redis:8": Family(13, ("redis-server", "redis-tools"), user="redis"),
    "redis:7": Family(12, ("redis-server", "redis-tools"), user="redis"),
    "valkey/valkey:8": Family(13, ("valkey-server", "valkey-tools"), user="valkey"),
}


def family_of(image: str) -> Family:
    """Return the family of an image reference such as `docker.io/library/redis:8-alpine`.

    Raises ``OpsError`` if nothing can stand in for it.
    """
    if "@" in image:
        raise OpsError(f"{image} cannot be pulled, and nothing can stand in for a digest: name it by its tag alone")
    name = re.sub(r"^((index\.)?docker\.io/)?(library/)?", "", image)
    for prefix, family in FAMILIES.items():
        if re.fullmatch(re.escape(prefix) + r"([.-].*)?", name):
            return family
    raise OpsError(
        f"{image} cannot be pulled, and Debian has no stand-in for it: load it with `docker load`, "
        f"or choose one of {', '.join(prefix + '*' for prefix in FAMILIES)}"
    )


def source_lines(family: Family, index_targets: str) -> list[str]:
    """Return the apt sources for a family, taken from the host's own mirrors.

    `index_targets` has a line `LABEL URI` for each of the host's Debian package lists; without any, the
    result is empty and mmdebstrap chooses its own.
    """
    suite = SUITES[family.debian]
    suites = {"Debian": suite, "Debian-Security": f"{suite}-security"}
    mirrors = dict(line.split(maxsplit=1) for line in reversed(index_targets.splitlines()))
    return [f"deb {mirrors[label]} {name} main" for label, name in suites.items() if label in mirrors]


def mmdebstrap_argv(family: Family, sources: Sequence[str], version_file: Path) -> list[str]:
    """Return the command that writes a family's file tree to standard output as a tar.

    On the way it leaves the version of the family's first package in `version_file`.
    """
    show_version = ["dpkg-query", "--show", "--showformat=${Version}", family.package]
    argv = [
        "mmdebstrap",
        "--variant=essential",
        f"--include={','.join(family.packages)}",
        f'--customize-hook=chroot "$1" {shlex.join(show_version)} >{shlex.quote(str(version_file))}',
        f"--customize-hook={TRIM}",
    ]
    if family.user:
        uid, gid = DATA_OWNER.split(":")
        # This comes before the package is installed, which would otherwise choose the numbers.
        argv.append(
            f'--essential-hook=echo {family.user}:x:{uid}:{gid}::/data:/usr/sbin/nologin >>"$1/etc/passwd" && '
            f'echo {family.user}:x:{gid}: >>"$1/etc/group" && mkdir "$1/data" && chown {DATA_OWNER} "$1/data"'
        )
    if family.user == "valkey":  # its official image has the commands under Redis's names, too
        links = " && ".join(f'ln -s valkey-{name} "$1/usr/bin/redis-{name}"' for name in ("server", "cli"))
        argv.append(f"--customize-hook={links}")
    return [*argv, SUITES[family.debian], "-", *sources]


def import_argv(image: str, family: Family, version: str) -> list[str]:
    """Return the command that makes an image out of the tar on its standard input."""
    title = f"Debian {family.debian}'s {family.package}"
    changes = [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f'LABEL org.opencontainers.image.title="{title}"',
        f'LABEL org.opencontainers.image.description="Stand-in for {image}, built from Debian packages"',
        f"LABEL org.opencontainers.image.version={version}",
        "LABEL aegis.stand-in=true",
        f'CMD ["{family.package}"]',
    ]
    if family.user:
        changes += ["WORKDIR /data", "VOLUME /data", "EXPOSE 6379"]
    return ["docker", "import", *(f"--change={change}" for change in changes), "-", image]


def upstream(version: str) -> str:
    """Return the upstream part of a Debian version: `5:8.0.2-3+deb13u1` gives `8.0.2`."""
    return re.sub(r"^\d+:|[-+~].*$", "", version)


def ensure_base(stack: Stack) -> None:
    """Have the images that ours are built on, or stand-ins for them."""
    for variable in ("PYTHON_IMAGE", "REDIS_IMAGE"):
        ensure_for(stack, stack.environment.values[variable])


def ensure_for(stack: Stack, image: str) -> None:
    stack.change(f"have the image {image}", partial(ensure, image))


def ensure(image: str) -> None:
    """Have an image in the engine: pull it, or build its stand-in under the same name.

    Raises ``OpsError`` if neither can be done.
    """
    here = shell.ask(["docker", "image", "inspect", image])
    if here.returncode == 0:
        return
    if "no such image" not in here.stderr.lower():
        raise OpsError(f"Docker cannot look for {image}: {here.stderr.strip()}")
    say(f"pulling {image}")
    # No time limit is needed: the engine itself gives up on a silent registry after 15 seconds.
    pull = shell.ask(["docker", "pull", "--quiet", image])
    if pull.returncode == 0:
        return
    if "not found" in pull.stderr:
        raise OpsError(f"{image} does not exist: {pull.stderr.strip()}")
    family = family_of(image)
    _need_mmdebstrap(image)
    began = time.monotonic()
    version = upstream(_build(image, family))
    reason = pull.stderr.strip().rpartition(": ")[2]
    say(
        f"{image} cannot be pulled ({reason}): built from Debian {family.debian}'s "
        f"{family.package} {version} instead ({time.monotonic() - began:.0f} s)"
    )


def _need_mmdebstrap(image: str) -> None:
    if shutil.which("mmdebstrap"):
        return
    install = "apt-get install --yes --no-install-recommends mmdebstrap debian-archive-keyring"
    if os.geteuid() != 0:
        raise OpsError(f"{image} cannot be pulled; to build it from Debian's packages, type: sudo {install}")
    say("installing mmdebstrap")
    done = shell.ask(install.split())
    if done.returncode != 0:
        raise OpsError(f"{install}: {done.stderr.strip()}")


def _build(image: str, family: Family) -> str:
    """Build an image and return the Debian version of its main package."""
    targets = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    sources = source_lines(family, shell.ask(targets).stdout)
    with tempfile.TemporaryDirectory() as scratch:
        version_file = Path(scratch, "version")
        try:
            # It starts other programs. If only it gets a signal, it waits for them.
            argv = mmdebstrap_argv(family, sources, version_file)
            with shell.pipe(argv, session=True, stdout=subprocess.PIPE) as tree:
                assert tree.stdout  # noqa: S101
                # The tar begins when the tree is complete, and only then is the version known.
                select.select([tree.stdout], [], [])
                version = version_file.read_text() if version_file.exists() else ""
                if version and shell.run(import_argv(image, family, version), quiet=True, stdin=tree.stdout):
                    raise OpsError(f"{image} cannot be imported")
        except OpsError as error:
            end = "\n".join(str(error).splitlines()[-20:])
            raise OpsError(f"{image} cannot be pulled, nor built from Debian's packages:\n{end}") from None
    return version
