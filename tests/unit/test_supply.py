"""What the image is made of, the pure parts: which packages stay, how they are listed, where a digest is written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from image import trim
from image.sbom import debian
from image.sbom import fields as fields_of
from ops.config import envfile
from ops.config.environment import Environment
from ops.release.supply import home

#: A package that others need, each with those that need it.
NEEDED_BY = {"libc6": {"dash", "tar", "libfoo"}, "libfoo": {"dash"}, "perl-base": {"tar", "netbase"}, "tar": set()}


def dpkg(packages: Iterable[str], *_: str) -> subprocess.CompletedProcess[str]:
    """Answers as dpkg does."""
    given = sorted(packages)
    refused = [name for name in given if NEEDED_BY[name] - set(given)]
    status = "".join(f"status: {name}:amd64 : error : dependency problems - not removing\n" for name in refused)
    told = "".join(f"dpkg: problems prevent removal of {name}:\n {name} is needed.\n\n" for name in refused)
    return subprocess.CompletedProcess([], len(refused), status, told)


@pytest.mark.parametrize(
    ("packages", "removed"),
    [({"tar"}, {"tar"}), ({"libc6", "libfoo", "tar"}, {"tar"}), (set(), set())],
)
def test_what_dpkg_refuses_stays(monkeypatch: pytest.MonkeyPatch, packages: set[str], removed: set[str]) -> None:
    monkeypatch.setattr(trim, "dpkg_purge", dpkg)
    assert trim.removable(packages) == removed


def test_an_unwanted_package_that_is_needed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim, "dpkg_purge", dpkg)
    with pytest.raises(SystemExit, match=r"perl-base is not wanted .*\n perl-base is needed"):
        trim.removable({"libc6", "perl-base", "tar"})


@pytest.mark.parametrize(
    ("path", "content", "useless"),
    [
        ("bin/good", "#!/bin/sh -e\n", False),
        ("bin/bad", "#! /no/perl -w\n", True),
        ("bin/program", "\x7fELF", False),
        ("sbin/bad", "#!/no/bash", True),
        ("lib/module.py", "#!/no/python3\n", False),
    ],
)
def test_a_command_without_its_interpreter_is_useless(tmp_path: Path, path: str, content: str, useless: bool) -> None:
    file = tmp_path / path
    file.parent.mkdir()
    file.write_text(content)
    assert trim.is_useless(file) == useless


@pytest.mark.parametrize(
    ("target", "useless"), [("/nowhere", True), ("/proc/0/mounts", False), ("/run/none", False), ("/", False)]
)
def test_a_link_to_nothing_is_useless(tmp_path: Path, target: str, useless: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    assert trim.is_useless(link) == useless


def test_a_package_of_debian_has_a_package_url() -> None:
    stanza = "Package: libstdc++6\nVersion: 1:14.2~rc1-19+b1\nArchitecture: amd64\nDescription: Library\n"
    component = debian(fields_of(stanza, ": "), "13")
    assert component["purl"] == ("pkg:deb/debian/libstdc%2B%2B6@1%3A14.2~rc1-19%2Bb1?arch=amd64&distro=debian-13")
    assert (component["name"], component["version"]) == ("libstdc++6", "1:14.2~rc1-19+b1")


@pytest.mark.parametrize(
    ("own", "local", "written"),
    [("", None, "prod.env"), ("X_IMAGE=a", None, "prod.env"), ("X_IMAGE=a", "X_IMAGE=b", "prod.local.env")],
)
def test_a_digest_is_written_where_the_image_is_named(
    tmp_path: Path, own: str, local: str | None, written: str
) -> None:
    texts = {"base.env": "X_IMAGE=a", "prod.env": own, "prod.local.env": local}
    for name, text in texts.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    files = tuple(tmp_path / name for name, text in texts.items() if text is not None)
    assert home(Environment("prod", files, {}), "X_IMAGE") == tmp_path / written


def test_a_variable_is_written_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "prod.env"
    file.write_text("# The first.\nA=1\nB=2\n")
    envfile.write(file, "A", "3")
    envfile.write(file, "C", "4")
    assert file.read_text() == "# The first.\nA=3\nB=2\nC=4\n"
