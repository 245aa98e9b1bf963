"""What the images are made of, and which ones exactly they are built on."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from . import commands, configuration, envfile, releases
from .configuration import ROOT, ConfigurationError, Environment
from .stack import Stack, say

SBOM = "/srv/aegis/sbom.cdx.json"  #: in the workers' images; the Dockerfile puts it there


def sbom(stack: Stack, options: argparse.Namespace) -> int:
    """Print the bill of materials of the workers' image, or of the one that a queue's service has."""
    image = releases.images(stack)[0]
    if options.queue:
        service, _ = commands.replicas_variable(options.queue)
        found = stack.model()["services"].get(service)
        if not found:
            raise ConfigurationError(f"there is no service {service} in ENV={stack.name}")
        image = found["image"]
    if stack.ask(["docker", "image", "inspect", image]).returncode:
        raise ConfigurationError(f"{image} is not here: `make build ENV={stack.name}`")
    print(stack.output(["docker", "run", "--rm", "--network=none", "--entrypoint=cat", image, SBOM]), end="")
    return 0


def digests(stack: Stack, _: argparse.Namespace) -> int:
    """Write down all images but our own by the digests that their tags have now.

    Raises ``ConfigurationError`` with a line for each that has none, once the others are written.
    """
    problems = []
    for variable, image in stack.environment.values.items():
        if variable.endswith("_IMAGE") and variable != "APP_IMAGE":
            tag, file = image.partition("@")[0], home(stack.environment, variable)
            action = partial(_pin, stack, variable, tag, file)
            problems.append(stack.change(f"pull {tag}, write {variable} with its digest into {_name(file)}", action))
    if any(problems):
        raise ConfigurationError("\n".join(filter(None, problems)))
    return 0


def home(environment: Environment, variable: str) -> Path:
    """Return the file that a variable's value comes from, or the environment's own for base.env's, the default."""
    _, *files = environment.files
    found = [file for file in files if variable in envfile.parse(file.read_text())[0]]
    return found[-1] if found else files[0]


def _pin(stack: Stack, variable: str, tag: str, file: Path) -> str | None:
    """Write an image down with its digest; return why it has none, if so."""
    pull = stack.ask(["docker", "pull", tag])
    digest = re.search(r"^Digest: (\S+)$", pull.stdout, re.MULTILINE)
    if pull.returncode or not digest:
        reason = pull.stderr.strip().rpartition(": ")[2]
        return f"{variable}={tag} is not pinned: it cannot be pulled ({reason}), and what is built here has no digest"
    value = f"{tag}@{digest[1]}"
    configuration.write(file, variable, value)
    say(f"{variable}={value} is written to {_name(file)}")
    return None


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))
