"""Base images for machines that no image registry answers: stand-ins built from Debian's packages."""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

SUITES = {12: "bookworm", 13: "trixie"}

# Owner of the data, as in the official Redis and Valkey images.
DATA_OWNER = "999:1000"

# What no container reads: a third of the tree. Removed at the end, because dpkg's path-exclude makes
# mmdebstrap filter every single package, which takes longer than the rest of the build.
TRIM = (
    'cd "$1" && find usr/share/doc -type f ! -name copyright -delete && rm -rf usr/share/man usr/share/locale '
    "usr/share/i18n usr/share/info usr/share/lintian usr/share/bash-completion usr/lib/*/gconv "
    "usr/lib/python3*/test usr/lib/python3*/pydoc_data var/cache/debconf/* var/log/*"
)


class ImageError(RuntimeError):
    """An image is neither here nor to be had; the message says which one and what to do."""


@dataclass(frozen=True)
class Family:
    """Where the stand-ins for a family of images come from.

    The first package gives the image its version; a server's package bears the name of its command.
    """

    debian: int
    packages: tuple[str, ...]
    user: str | None = None  # a server's: owns /data

    @property
    def package(self) -> str:
        return self.packages[0]


# As in the official image, where libstdc++, which compiled wheels want, comes with apt.
PYTHON = ("python3", "python3-venv", "ca-certificates", "tzdata", "libstdc++6")

FAMILIES = {
    "python:3.13": Family(13, PYTHON),
    "redis:8": Family(13, ("redis-server", "redis-tools"), user="redis"),
    "redis:7": Family(12, ("redis-server", "redis-tools"), user="redis"),
    "valkey/valkey:8": Family(13, ("valkey-server", "valkey-tools"), user="valkey"),
}


def family_of(image: str) -> Family:
    """Return the family of an image reference such as `docker.io/library/redis:8-alpine`.

    Raises ImageError where nothing can stand in for it.
    """
    if "@" in image:
        raise ImageError(f"{image} cannot be pulled, and nothing can stand in for a digest: name it by its tag alone")
    name = re.sub(r"^((index\.)?docker\.io/)?(library/)?", "", image)
    for prefix, family in FAMILIES.items():
        if re.fullmatch(re.escape(prefix) + r"([.-].*)?", name):
            return family
    raise ImageError(
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
        # Before the package is installed, which would otherwise choose the numbers itself.
        argv.append(
            f'--essential-hook=echo {family.user}:x:{uid}:{gid}::/data:/usr/sbin/nologin >>"$1/etc/passwd" && '
            f'echo {family.user}:x:{gid}: >>"$1/etc/group" && mkdir "$1/data" && chown {DATA_OWNER} "$1/data"'
        )
    if family.user == "valkey":  # whose official image has its commands under Redis's names, too
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


def ensure(image: str, *, say: Callable[[str], None]) -> None:
    """Make sure that the engine has an image: pull it, or build its stand-in under the same name.

    `say` gets a line for each thing done. Raises ImageError when the image can be had in neither way.
    """
    here = _run("docker", "image", "inspect", image)
    if here.returncode == 0:
        return
    if "no such image" not in here.stderr.lower():
        raise ImageError(f"Docker cannot look for {image}: {here.stderr.strip()}")
    say(f"pulling {image}")
    # Needs no time limit: the engine itself gives up on a silent registry after 15 seconds.
    pull = _run("docker", "pull", "--quiet", image)
    if pull.returncode == 0:
        return
    if "not found" in pull.stderr:
        raise ImageError(f"{image} does not exist: {pull.stderr.strip()}")
    family = family_of(image)
    _need_mmdebstrap(image, say)
    started = time.monotonic()
    version = upstream(_build(image, family))
    reason = pull.stderr.strip().rpartition(": ")[2]
    say(
        f"{image} cannot be pulled ({reason}): built from Debian {family.debian}'s "
        f"{family.package} {version} instead ({time.monotonic() - started:.0f} s)"
    )


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ImageError(f"{argv[0]} is not installed: run `make engine`") from error


def _need_mmdebstrap(image: str, say: Callable[[str], None]) -> None:
    if shutil.which("mmdebstrap"):
        return
    install = "apt-get install --yes --no-install-recommends mmdebstrap debian-archive-keyring"
    if os.geteuid() != 0:
        raise ImageError(f"{image} cannot be pulled; to build it from Debian's packages, type: sudo {install}")
    say("installing mmdebstrap")
    done = _run(*install.split())
    if done.returncode != 0:
        raise ImageError(f"{install}: {done.stderr.strip()}")


def _build(image: str, family: Family) -> str:
    """Build an image and return the Debian version of its main package."""
    label_uri = ["--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    sources = source_lines(family, _run("apt-get", "indextargets", *label_uri).stdout)
    with tempfile.TemporaryDirectory() as scratch:
        version_file = Path(scratch, "version")
        log_file = Path(scratch, "log")
        with log_file.open("w") as log:
            # In a session of its own, to be ended whole: alone, mmdebstrap waits for what it started.
            tree = subprocess.Popen(
                mmdebstrap_argv(family, sources, version_file),
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            try:
                # The tar begins when the tree is complete, and only then is the version known.
                tar = cast(IO[bytes], tree.stdout)
                select.select([tar], [], [])
                version = version_file.read_text() if version_file.exists() else ""
                if version:
                    made = subprocess.run(
                        import_argv(image, family, version), stdin=tar, capture_output=True, text=True
                    )
                    if made.returncode != 0:
                        raise ImageError(f"{image} cannot be imported: {made.stderr.strip()}")
                if tree.wait() != 0:
                    end = "\n".join(log_file.read_text().splitlines()[-20:])
                    raise ImageError(f"{image} cannot be pulled, nor built from Debian's packages:\n{end}")
            finally:
                if tree.poll() is None:
                    os.killpg(tree.pid, signal.SIGTERM)  # it removes what it has made so far
                    tree.wait()
    return version
