"""Images by their digests: `make digests`, against a registry of the test's own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.stack.conftest import IMAGES, MakeStack


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def pushed(registry: str, make_stack: MakeStack) -> Iterator[dict[str, str]]:
    """The base images in the registry, by the variables that name them."""
    stack = make_stack("dev")
    stack.make("build")  # has them, or makes stand-ins
    found = {variable: f"{registry}/{image}" for variable, image in IMAGES.items()}
    for variable, image in found.items():
        docker("tag", IMAGES[variable], image)
        docker("push", "--quiet", image)
        docker("image", "rm", image)
    yield found
    listed = docker("image", "ls", "--digests", "--format", "{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}")
    # With its last tag an image loses its digest, too, so that some are gone already.
    ours = [name for name in listed.split() if name.startswith(registry) and "<none>" not in name]
    subprocess.run(["docker", "image", "rm", *ours], capture_output=True)


def test_a_stack_is_pinned_and_runs_by_digests(pushed: dict[str, str], make_stack: MakeStack) -> None:
    stack = make_stack("prod")
    file = stack.folder / "env" / "prod.env"
    before = (
        file.read_text() + "".join(f"{variable}={image}\n" for variable, image in pushed.items()) + "LOG_LEVEL=INFO\n"
    )
    file.write_text(before)
    stack.make("digests")
    pinned = dict(re.findall(r"^(\w+_IMAGE)=(.*)$", file.read_text(), re.MULTILINE))
    for variable, image in pushed.items():
        assert re.fullmatch(re.escape(image) + "@sha256:[0-9a-f]{64}", pinned[variable])
    assert re.sub(r"@sha256:\w+", "", file.read_text()) == before, "nothing else is touched"

    stack.make("up")
    assert stack.inspect("redis")["Config"]["Image"] == pinned["REDIS_IMAGE"]
    assert stack.app("load-test", "io", "-n", "10")["done"] == 10

    # What the tag is now, not what it was.
    docker("tag", IMAGES["PYTHON_IMAGE"], pushed["REDIS_IMAGE"])
    docker("push", "--quiet", pushed["REDIS_IMAGE"])
    stack.make("digests")
    again = dict(re.findall(r"^(\w+_IMAGE)=(.*)$", file.read_text(), re.MULTILINE))
    assert again["REDIS_IMAGE"].partition("@")[2] == pinned["PYTHON_IMAGE"].partition("@")[2]
    assert again["PYTHON_IMAGE"] == pinned["PYTHON_IMAGE"]


def test_what_has_no_digest_is_named_and_the_others_are_pinned(pushed: dict[str, str], make_stack: MakeStack) -> None:
    stack = make_stack("dev", REDIS_IMAGE="127.0.0.1:1/redis:8", PYTHON_IMAGE=pushed["PYTHON_IMAGE"])
    done = stack.make("digests", check=False)
    assert done.returncode != 0
    written, problem = done.stderr.splitlines()[:2]
    assert written.startswith(f"PYTHON_IMAGE={pushed['PYTHON_IMAGE']}@sha256:")
    assert written.endswith(" is written to env/dev.local.env")
    assert problem.startswith("REDIS_IMAGE=127.0.0.1:1/redis:8 is not pinned: it cannot be pulled (")
    assert "REDIS_IMAGE=127.0.0.1:1/redis:8\n" in stack.local_file.read_text()
