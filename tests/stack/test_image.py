"""The image: what it is made of, what is not in it, and that it comes out the same each time."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import ROOT
from tests.stack.conftest import MakeStack, Stack

#: A name of our own: the other tests' image is built anew beside this one.
IMAGE = f"aegis-image-{uuid.uuid4().hex[:8]}"

PYTHON_IMAGE = "python:3.13-slim-trixie"

#: Looks through the image, as root: what is privileged, what there is to run, what Python can load and whom it trusts.
LOOK = """
import ctypes, importlib.metadata, json, os, pathlib, ssl, sys, sysconfig

def privileged(path):
    return os.lstat(path).st_mode & 0o6000 or "security.capability" in os.listxattr(path, follow_symlinks=False)

paths = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    paths += [os.path.join(folder, name) for name in folders + files]
programs = [*os.environ["PATH"].split(":"), "/usr/local/sbin", "/usr/sbin"]
own = pathlib.Path(sysconfig.get_path("stdlib"), "lib-dynload")
modules = [*own.iterdir(), *pathlib.Path(sys.prefix).rglob("*.so*")]
for module in modules:
    ctypes.CDLL(str(module))
info = pathlib.Path("/var/lib/dpkg/info")
print(json.dumps({
    "privileged": [path for path in paths if privileged(path)],
    "commands": [os.path.basename(path) for path in paths if os.path.dirname(path) in programs],
    "modules": len(modules),
    "authorities": len(ssl.create_default_context().get_ca_certs()),
    "python": {each.name: each.version for each in importlib.metadata.distributions()},
    "status": pathlib.Path("/var/lib/dpkg/status").read_text(),
    "listed": sorted(path.stem.partition(":")[0] for path in info.glob("*.list")),
}))
"""

#: Makes of Debian's Python one that belongs to no package, as in Python's official images.
TO_USR_LOCAL = """
set -e
name=$(readlink /usr/bin/python3)
cp -a "/usr/lib/$name" /usr/local/lib/
cp "/usr/bin/$name" /usr/local/bin/
ln -s "$name" /usr/local/bin/python3
dpkg --purge --force-depends $(dpkg-query --show --showformat='${Package}\\n' | grep -E '^(lib)?python3' | grep -v whl)
"""

#: Prints a line for each file: its name, mode, owner, time and content.
LISTING = """
import hashlib, os
for folder, folders, files in os.walk("/"):
    folders[:] = sorted(name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev"))
    for path in [folder, *(os.path.join(folder, name) for name in sorted(files))]:
        at = os.lstat(path)
        regular = os.path.isfile(path) and not os.path.islink(path)
        content = hashlib.sha256(open(path, "rb").read()).hexdigest() if regular else ""
        print(path, oct(at.st_mode), at.st_uid, at.st_gid, at.st_mtime_ns, content)
"""

#: What comes with Debian or Python, and would be of use to an intruder alone.
UNWANTED = {
    *("apt", "apt-get", "dpkg", "dpkg-deb", "pip", "pip3", "tar", "gzip", "perl", "bash", "awk", "mawk", "openssl"),
    *("su", "passwd", "login", "newgrp", "chsh", "mount", "umount", "nsenter", "unshare", "setpriv"),
    *("curl", "wget", "gcc", "cc", "make", "start-stop-daemon"),
}


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> Iterator[Stack]:
    stack = make_stack("dev", APP_IMAGE=IMAGE)
    stack.make("build")
    yield stack
    stack.run("docker", "image", "rm", f"{IMAGE}:dev")


def look(image: str) -> dict[str, Any]:
    run = ["docker", "run", "--rm", "--interactive", "--network=none", "--user=0", "--entrypoint=python"]
    done = subprocess.run([*run, image, "-"], input=LOOK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def inside(stack: Stack) -> dict[str, Any]:
    return look(f"{IMAGE}:dev")


@pytest.fixture(scope="module")
def again(stack: Stack, make_stack: MakeStack) -> Iterator[str]:
    """What a build says from another folder, with other times and permissions, and nothing out of the cache."""
    other = make_stack("dev", APP_IMAGE=f"{IMAGE}-again")
    for folder in ("app", "image", "library", "requirements"):
        for path in (other.folder / folder).rglob("*"):
            path.chmod(0o700 if os.access(path, os.X_OK) else 0o600)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    # As `make build`, which knows the host's certificates.
    built = other.make("--eval=again: ; @$(OPS) compose build --no-cache", "again")
    yield built.stdout + built.stderr
    stack.run("docker", "image", "rm", f"{IMAGE}-again:dev")


@pytest.fixture
def make_base(stack: Stack) -> Iterator[Callable[[str], str]]:
    """Makes an image to build on: the usual one, after a script has run in it."""
    made: list[str] = []

    def make(script: str) -> str:
        made.append(f"{IMAGE}-base:{len(made)}")
        container = f"{IMAGE}-base"
        stack.run("docker", "run", "--name", container, "--network=none", PYTHON_IMAGE, "sh", "-c", script)
        stack.run("docker", "commit", container, made[-1])
        stack.run("docker", "rm", container)
        return made[-1]

    yield make
    stack.run("docker", "image", "rm", *made)


@pytest.fixture(scope="module")
def sbom(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stack.make("sbom").stdout)
    return found


def test_nothing_in_it_has_more_rights_than_who_runs_it(inside: dict[str, Any]) -> None:
    assert inside["privileged"] == []


def test_it_has_no_tools_that_a_worker_does_not_need(inside: dict[str, Any]) -> None:
    assert UNWANTED & set(inside["commands"]) == set()
    assert {"sh", "find", "python", "python3", "aegis-worker", "my-app", "arq"} <= set(inside["commands"])


def test_what_was_trimmed_is_not_missed(inside: dict[str, Any]) -> None:
    """Each extension module finds the libraries that it is linked with, and TLS the authorities."""
    assert inside["modules"] > 40
    assert inside["authorities"] > 100


def test_scanners_see_the_packages_that_there_are(inside: dict[str, Any]) -> None:
    named = re.findall(r"^Package: (.*)$", inside["status"], re.MULTILINE)
    assert sorted(named) == inside["listed"]
    assert {"libc6", "libssl3t64", "ca-certificates"} <= set(named)
    assert {"apt", "dpkg", "perl-base", "util-linux"} & set(named) == set()


def test_its_history_tells_nothing_of_the_host(stack: Stack) -> None:
    history = stack.run("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", f"{IMAGE}:dev").stdout
    assert not [line for line in history.splitlines() if "RUN" in line or "/bin/sh" in line]
    assert "ca_bundle" not in history


def test_the_bill_of_materials_is_cyclonedx(sbom: dict[str, Any]) -> None:
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(sbom)) is None


def test_the_bill_of_materials_has_all_that_is_in_the_image(sbom: dict[str, Any], inside: dict[str, Any]) -> None:
    by_purl = {component["purl"].partition("?")[0]: component for component in sbom["components"]}
    python = {c["name"]: c["version"] for purl, c in by_purl.items() if purl.startswith(("pkg:pypi/", "pkg:generic/"))}
    assert [purl for purl in by_purl if purl.startswith("pkg:generic/")] == ["pkg:generic/aegis-worker@0.1.0"]
    assert python == inside["python"]
    versions = re.findall(r"^Package: (.*)$(?:\n.+)*?\nVersion: (.*)$", inside["status"], re.MULTILINE)
    debian = [(c["name"], c["version"]) for purl, c in by_purl.items() if purl.startswith("pkg:deb/debian/")]
    assert sorted(debian) == sorted(versions)
    assert len(by_purl) == len(python) + len(debian)


def test_the_bill_of_materials_has_hashes_of_the_lock_and_licences(sbom: dict[str, Any]) -> None:
    lock = (ROOT / "requirements" / "app.txt").read_text()
    packages = [each for each in sbom["components"] if each["purl"].startswith("pkg:pypi/")]
    for package in packages:
        (sha256,) = package["hashes"]
        assert sha256["alg"] == "SHA-256"
        assert f"--hash=sha256:{sha256['content']}" in lock
        assert package["licenses"], package["name"]
    assert sbom["metadata"]["component"]["name"] == "my-app"


def test_the_same_input_makes_the_same_layers(stack: Stack, again: str) -> None:
    inspect = ["docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}"]
    first, second = (json.loads(stack.run(*inspect, f"{name}:dev").stdout) for name in (IMAGE, f"{IMAGE}-again"))
    assert first == second, differences(f"{IMAGE}:dev", f"{IMAGE}-again:dev")


def differences(*images: str) -> list[str]:
    """Return the files of two images that are not the same in both, with what is known of them."""
    listings = []
    for image in images:
        command = ["docker", "run", "--rm", "--network=none", "--user=0", "--entrypoint=python", image, "-c", LISTING]
        listings.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    return list(difflib.unified_diff(*listings, n=0, lineterm=""))


def test_a_build_says_which_packages_stay_and_which_go(again: str, inside: dict[str, Any]) -> None:
    stay, go = (re.search(rf"trim: \d+ packages {what}, \d+ kB: (.*)", again) for what in ("stay", "go"))
    assert stay
    assert go
    assert re.findall(r"(\S+) \d+", stay[1]) == inside["listed"]
    assert re.search(r"\bperl-base \d+, ", go[1])
    assert "/etc/pam.d" in again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("/^Package: netbase$/a Depends: perl-base", "netbase depends on perl-base"),
        ("s/^Package: tzdata$/Package: zones/", "the base image does not have tzdata"),
        ("s/ libsqlite3-0 ([^)]*),//", "libsqlite3.so.0: cannot open shared object file"),
    ],
)
def test_a_surprise_in_the_base_image_fails_the_build_by_name(
    make_base: Callable[[str], str], make_stack: MakeStack, change: str, message: str
) -> None:
    """An unwanted package is needed; one that has to be there is not; one is needed, and nothing says so."""
    base = make_base(f"sed -i '{change}' /var/lib/dpkg/status")
    done = make_stack("dev", APP_IMAGE=f"{IMAGE}-none", PYTHON_IMAGE=base).make("build", check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_a_python_of_no_package_keeps_its_libraries(make_base: Callable[[str], str], make_stack: MakeStack) -> None:
    stack = make_stack("dev", APP_IMAGE=f"{IMAGE}-local", PYTHON_IMAGE=make_base(TO_USR_LOCAL))
    stack.make("build")
    found = look(f"{IMAGE}-local:dev")
    stack.run("docker", "image", "rm", f"{IMAGE}-local:dev")
    assert {"libssl3t64", "libsqlite3-0"} <= set(found["listed"])
    assert [name for name in found["listed"] if "python" in name] == []
    assert UNWANTED & set(found["commands"]) == set()
    assert found["modules"] > 40


def test_no_image_yet_is_one_line(make_stack: MakeStack) -> None:
    stack = make_stack("dev", APP_IMAGE="aegis-none")
    done = stack.make("sbom", check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == "aegis-none:dev is not here: `make build ENV=dev`"
