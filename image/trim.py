"""Remove from a Debian system what its Python can do without: `trim.py ROOT`, as root, where ROOT is a copy of `/`.

dpkg itself removes the packages. It refuses to remove what a package that stays depends on, so this stays, too. In the
end dpkg's status names exactly what is there, every program finds its libraries, and all that went has been printed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: These packages stay, with what they depend on. The shell and its everyday commands are for the health check and for
#: `make shell`. Wheels need libstdc++6. OpenSSL's library finds the certificates by a folder of the package openssl.
KEEP = {
    *("base-files", "base-passwd", "ca-certificates", "libc-bin", "libstdc++6", "netbase", "openssl"),
    *("coreutils", "dash", "findutils", "grep", "ncurses-base", "sed", "tzdata"),
}
#: A dependency on one of these does not count, since it is for the installation of a package, not for its use.
UNUSED = {"debconf", "debianutils", "dpkg", "mawk"}
#: If a package that stays depends on one of these, the build fails, since a person has to decide what goes.
UNWANTED = {"apt", "bash", "gzip", "perl-base", "python3-pip", "tar", "util-linux"}
#: These files go as well. They belong to packages that stay, or to none.
FILES = (
    *("usr/bin/openssl", "usr/lib/ssl/misc"),
    *("usr/local/bin/pip*", "usr/local/lib/python3*/ensurepip", "usr/local/lib/python3*/site-packages/pip*"),
    *("etc/*-", "tmp/*", "var/cache/*", "var/log/*", "var/lib/apt", "var/lib/dpkg/[!is]*", "var/lib/dpkg/status-old"),
)
#: These folders of dpkg stay without it: scanners read the first, and links in the second lead to programs.
FOLDERS_OF_DPKG = ("/var/lib/dpkg", "/etc/alternatives")


def main() -> None:
    os.chroot(sys.argv[1])
    os.chdir("/")
    os.environ["LC_ALL"] = "C.UTF-8"  # what dpkg says is read below
    shown = run("dpkg-query", "--show", "--showformat=${Package} ${Installed-Size}\n").stdout
    sizes = {name: int(kilobytes or 0) for name, _, kilobytes in (line.partition(" ") for line in shown.splitlines())}
    keep = KEEP | linked("/usr/local") | ({"python3"} if sys.prefix == "/usr" else set())
    if missing := keep - sizes.keys():
        sys.exit(f"trim: the base image does not have {', '.join(sorted(missing))}")
    go = removable(sizes.keys() - keep)
    stay = sizes.keys() - go
    for names, what in ((stay, "stay"), (go, "go")):
        total = sum(sizes[name] for name in names)
        say(f"{len(names)} packages {what}, {total} kB", (f"{name} {sizes[name]}" for name in names))

    broken_before = broken()
    folders = listed(go) - listed(stay)
    purge(go)
    say("files and folders that go with them", map(str, clean(folders)))
    if lost := broken() - broken_before:
        sys.exit("\n".join(["trim: a library is missing that the base image has:", *sorted(lost)]))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def say(what: str, each: Iterable[str]) -> None:
    print(f"trim: {what}:", ", ".join(sorted(each)))


def dpkg_purge(packages: Iterable[str], *options: str) -> subprocess.CompletedProcess[str]:
    force = ("--force-remove-essential", "--force-remove-protected", "--abort-after=9999")
    return run("dpkg", *force, f"--ignore-depends={','.join(UNUSED)}", *options, "--purge", *sorted(packages))


def removable(packages: Iterable[str]) -> set[str]:
    """Return those of the packages that can go: dpkg, asked what it would do, refuses the others."""
    go = set(packages)
    while True:
        tried = dpkg_purge(go, "--no-act", "--status-fd=1")
        refused = set(re.findall(r"^status: ([^\s:]+)\S* : error : ", tried.stdout, re.MULTILINE))
        if not refused:
            return go
        for name in sorted(refused & UNWANTED):
            why = re.findall(rf"removal of {name}:\n(.*?)\n\n", tried.stderr, re.DOTALL)
            sys.exit("\n".join([f"trim: {name} is not wanted in the image, and yet needed:", *why]))
        go -= refused


def purge(packages: Iterable[str]) -> None:
    """Remove packages without running their scripts, since these use programs that go at the same time."""
    for path in Path("/var/lib/dpkg/info").glob("*.p*rm"):
        if path.stem.partition(":")[0] in packages:
            path.unlink()
    done = dpkg_purge(packages)
    if done.returncode:
        sys.exit(f"trim: {done.stderr}")


def clean(folders: Iterable[Path]) -> set[Path]:
    """Remove the folders of packages that are gone, FILES, and all that is useless now. Return what was removed."""
    # Bytecode, for example, was written after its package was unpacked, and so belongs to no package.
    rest = {path for path in folders if path.is_dir() and not str(path).startswith(FOLDERS_OF_DPKG)}
    rest |= {Path("/", path) for pattern in FILES for path in Path().glob(pattern)}
    for path in sorted(rest):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder
    useless = {path for path in Path("/").rglob("*") if is_useless(path)}
    for path in useless:
        path.unlink()
    return rest | useless


def listed(packages: Iterable[str]) -> set[Path]:
    """Return the files and folders of packages."""
    paths = run("dpkg-query", "--listfiles", *packages).stdout.splitlines()
    return {Path(path).resolve() for path in paths if path.startswith("/")}


def is_useless(path: Path) -> bool:
    """Tell whether a path is a link to nothing, or a command in the language of an interpreter that is not there."""
    if not path.exists():
        return not str(path.resolve()).startswith(("/dev/", "/proc/", "/run/"))
    if path.parent.name not in ("bin", "sbin") or not path.is_file():
        return False  # a module of Python can name an interpreter, too, and is imported all the same
    with path.open("rb") as file:
        command = re.match(r"#! *(\S+)", file.readline(200).decode(errors="replace"))
    return command is not None and not Path(command[1]).exists()


def loaded(top: str) -> Iterator[subprocess.CompletedProcess[str]]:
    """Have the dynamic loader list the libraries of each program and library below a folder."""
    loader = str(next(Path("/").glob("lib*/ld-linux*.so.*")))
    for path in Path(top).rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield run(loader, "--list", str(path))


def broken() -> set[str]:
    """Return what the loader says of each program whose libraries it does not find."""
    return {each.stderr for each in loaded("/") if each.returncode}


def linked(top: str) -> set[str]:
    """Return the packages with the libraries that programs below a folder are linked with."""
    paths = {Path(path) for each in loaded(top) for path in re.findall(r"=> (/\S+)", each.stdout)}
    # The end of a path has to do: a package may list /lib/… where the loader says /usr/lib/…, or the other way round.
    found = run("dpkg-query", "--search", *(f"*/{path.parent.name}/{path.name}" for path in paths)).stdout
    return set(re.findall(r"^([^\s:]+)\S*: /", found, re.MULTILINE))


if __name__ == "__main__":
    main()
