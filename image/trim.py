"""Remove from a Debian system whatever its Python can do without: `trim.py ROOT`, as root.

What stays is KEEP, with what it depends on, and the libraries that a Python in /usr/local is linked with. A package
that goes leaves dpkg's status, too, so that scanners see what there is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

#: The shell and its everyday commands are for the health check and for `make shell`. Wheels want libstdc++6, and the
#: library of OpenSSL wants the folder of the package openssl: it leads to the certificates.
KEEP = {
    *("base-files", "base-passwd", "ca-certificates", "libc-bin", "libstdc++6", "netbase", "openssl", "python3"),
    *("coreutils", "dash", "findutils", "grep", "ncurses-base", "sed", "tzdata"),
}
#: What those depend on for their installation alone.
UNUSED = {"awk", "debconf", "debconf-2.0", "debianutils", "dpkg"}
#: What goes beside whole packages: of dpkg, info/ and status stay.
REMAINS = (
    *("usr/bin/c_rehash", "usr/bin/openssl", "usr/lib/ssl/misc"),
    *("usr/local/bin/pip*", "usr/local/lib/python3*/ensurepip", "usr/local/lib/python3*/site-packages/pip*"),
    *("etc/*-", "etc/alternatives", "etc/apt", "etc/dpkg", "etc/pam.d", "etc/security", "etc/systemd"),
    *("var/cache/*", "var/lib/[!d]*", "var/lib/dpkg/[!is]*", "var/lib/dpkg/status-old", "var/log/*", "tmp/*"),
)

DPKG = Path("/var/lib/dpkg")


def main() -> None:
    os.chroot(sys.argv[1])
    os.chdir("/")
    stanzas = (DPKG / "status").read_text().strip().split("\n\n")
    packages = {package["Package"]: package for package in map(fields, stanzas)}
    files = {package_of(path): path.read_text().splitlines() for path in DPKG.glob("info/*.list")}
    stay = closure(KEEP | linked(files), packages)
    kept = {path for name in stay for path in files[name]}
    remove({path for name in packages.keys() - stay for path in files[name]} - kept)
    for path in DPKG.glob("info/*.*"):
        if package_of(path) not in stay:
            path.unlink()
    (DPKG / "status").write_text("\n\n".join(text for text in stanzas if fields(text)["Package"] in stay) + "\n")
    subprocess.run(["ldconfig"], check=True)
    for path in [path for pattern in REMAINS for path in Path().glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in Path("usr").glob("*bin/*"):
        if not path.exists():  # a link to what has gone
            path.unlink()


def package_of(path: Path) -> str:
    """Return the package that a file in dpkg's info/ is about: `libc6:amd64.list` is about `libc6`."""
    return path.stem.partition(":")[0]


def fields(stanza: str) -> dict[str, str]:
    """Return the fields of a package, as far as they are of one line."""
    return dict(re.findall(r"^(\S+): (.*)$", stanza, re.MULTILINE))


def closure(names: Iterable[str], packages: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Return those of the packages that have or provide these names, and all that they depend on."""
    providers = {name: {name} for name in packages}
    for name, package in packages.items():
        for provided in re.findall(r"[^\s,]+(?=,|$| \()", package.get("Provides", "")):
            providers.setdefault(provided, set()).add(name)
    found: set[str] = set()
    todo = set(names)
    while todo:
        for name in providers.get(todo.pop(), set()) - found:
            found.add(name)
            depends = ",".join(packages[name].get(key, "") for key in ("Pre-Depends", "Depends"))
            todo |= set(re.findall(r"(?:^|[,|])\s*([a-z0-9.+-]+)", depends)) - UNUSED
    return found


def linked(files: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the packages with the libraries that programs and libraries in /usr/local are linked with."""
    local = [str(path) for path in Path("/usr/local").rglob("*") if path.is_file() and is_elf(path)]
    if not local:
        return set()
    listed = subprocess.run(["ldd", *local], capture_output=True, text=True).stdout
    libraries = {Path(path).resolve() for path in re.findall(r"=> (/\S+)", listed)}
    return {
        name
        for name, paths in files.items()
        if not libraries.isdisjoint(Path(path).resolve() for path in paths if ".so" in path)
    }


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def remove(paths: Iterable[str]) -> None:
    """Remove files, and then folders that are empty."""
    for path in sorted(map(Path, paths), reverse=True):
        if path.is_file() or path.is_symlink():
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    main()
