"""What the image is made of, the pure parts: which packages stay, how they are listed, where a digest is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.sbom import debian
from image.sbom import fields as fields_of
from image.trim import closure, fields, package_of
from ops import configuration
from ops.configuration import Environment
from ops.supply import home

PACKAGES = {
    "python3": {"Depends": "python3.13 (>= 3.13.3-1~), libpython3-stdlib (= 3.13.5-1)"},
    "python3.13": {"Depends": "libc6 (>= 2.38), media-types | mime-support, libssl3t64"},
    "libpython3-stdlib": {},
    "libc6": {"Depends": "libgcc-s1"},
    "libgcc-s1": {},
    "libssl3t64": {"Provides": "libssl3 (= 3.5.1)", "Pre-Depends": "libc6:any, dpkg"},
    "dpkg": {"Depends": "tar"},
    "tar": {},
    "perl-base": {"Depends": "libc6"},
}


@pytest.mark.parametrize(
    ("names", "stay"),
    [
        ({"libc6"}, {"libc6", "libgcc-s1"}),
        ({"libssl3"}, {"libssl3t64", "libc6", "libgcc-s1"}),
        ({"python3"}, set(PACKAGES) - {"dpkg", "tar", "perl-base"}),
        ({"tar", "not-installed"}, {"tar"}),
        (set(), set()),
    ],
)
def test_what_stays_is_what_is_asked_for_and_needed(names: set[str], stay: set[str]) -> None:
    assert closure(names, PACKAGES) == stay


def test_a_package_is_read_and_named() -> None:
    stanza = "Package: libc6\nDescription: GNU C Library\n Package: none\nVersion: 2.41-12\n"
    assert fields(stanza) == {"Package": "libc6", "Description": "GNU C Library", "Version": "2.41-12"}
    assert package_of(Path("info/libc6:amd64.list")) == "libc6"
    assert package_of(Path("info/python3.13-minimal.md5sums")) == "python3.13-minimal"


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
    configuration.write(file, "A", "3")
    configuration.write(file, "C", "4")
    assert file.read_text() == "# The first.\nA=3\nB=2\nC=4\n"
