"""What the images are made of, and which images exactly they are built on."""

import argparse
import re
from functools import partial
from pathlib import Path

from ..config import ROOT, OpsError, envfile
from ..config.environment import Environment
from ..engine import commands
from ..engine.stack import Stack
from ..engine.terminal import say
from . import versions

SBOM = "/srv/aegis/sbom.cdx.json"  #: in the workers' images; the Dockerfile puts it there


def sbom(stack: Stack, options: argparse.Namespace) -> int:
    """Print the bill of materials of the workers' image, or of the image of a queue's service."""
    image = versions.images(stack)[0]
    if options.queue:
        service, _ = commands.replicas_variable(options.queue)
        found = stack.model()["services"].get(service)
        if not found:
            raise OpsError(f"there is no service {service} in ENV={stack.name}")
        image = found["image"]
    if stack.ask(["docker", "image", "inspect", image]).returncode:
        raise OpsError(f"{image} is not here: `make build ENV={stack.name}`")
    print(stack.output(["docker", "run", "--rm", "--network=none", "--entrypoint=cat", image, SBOM]), end="")
    return 0


def digests(stack: Stack, _: argparse.Namespace) -> int:
    """Write down all images but our own with the digests that their tags have now.

    Raises ``OpsError`` with a line for each that has none, after the others are written.
    """
    problems = []
    for variable, image in stack.environment.values.items():
        if variable.endswith("_IMAGE") and variable != "APP_IMAGE":
            tag, file = image.partition("@")[0], home(stack.environment, variable)
            what = f"pull {tag}, write {variable} with its digest into {file.relative_to(ROOT)}"
            problems.append(stack.change(what, partial(_pin, stack, variable, tag, file)))
    if any(problems):
        raise OpsError("\n".join(filter(None, problems)))
    return 0


def home(environment: Environment, variable: str) -> Path:
    """Return the file that sets a variable. If only base.env does, return the environment's own file."""
    _, *files = environment.files
    found = [file for file in files if variable in envfile.read(file)]
    return found[-1] if found else files[0]


def _pin(stack: Stack, variable: str, tag: str, file: Path) -> str | None:
    """Write an image down with its digest. If it has none, return why."""
    pull = stack.ask(["docker", "pull", tag])
    digest = re.search(r"^Digest: (\S+)$", pull.stdout, re.MULTILINE)
    if pull.returncode or not digest:
        reason = pull.stderr.strip().rpartition(": ")[2]
        return f"{variable}={tag} is not pinned: it cannot be pulled ({reason}), and what is built here has no digest"
    value = f"{tag}@{digest[1]}"
    envfile.write(file, variable, value)
    say(f"{variable}={value} is written to {file.relative_to(ROOT)}")
    return None
