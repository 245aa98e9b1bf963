"""Everything for a host without a network in one file: the checkout, the images, and the checksums of both.

A bundle is a sealed archive of ``manifest.json``, the files of the checkout in a folder, and ``images.tar``. The engine
reads the images out of the bundle itself. It has no secrets: the host makes its own.
"""

import argparse
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..config import ROOT, OpsError, envfile
from ..engine import commands, images, sealed
from ..engine.stack import Stack
from ..engine.terminal import say
from . import versions

FOLDER = "aegis-worker"
IMAGES = "images.tar"
MANIFEST = "manifest.json"
PLATFORM = ["docker", "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is for, and what it has."""

    environment: str
    version: str
    platform: str  #: of the images, such as linux/amd64
    images: dict[str, list[str]]  #: the digests of each image's layers, which are the same in every engine
    variables: dict[str, str]  #: what the machine that made it had changed of the environment


def write(stack: Stack, options: argparse.Namespace) -> int:
    """Write what `make up` would start here into one file."""
    name = f"aegis-worker-{stack.name}-{stack.version}.bundle.tar"
    path = Path(options.file).resolve() if options.file else ROOT / ".local" / name
    if options.file and not path.parent.is_dir():
        raise OpsError(f"FILE={options.file}: there is not a folder {path.parent}")
    if path.is_dir():
        raise OpsError(f"FILE={options.file} is a folder: name a file, as in {options.file}/{name}")
    images.ensure_base(stack)
    if not versions.is_deployed(stack) and stack.run(commands.compose(stack.environment, "build", "--quiet")):
        raise OpsError("the images could not be built: no bundle was written")
    path.parent.mkdir(exist_ok=True)
    needed = _images(stack)
    if digests := [image for image in needed if "@" in image]:
        raise OpsError(f"{digests[0]}: an engine that loads it forgets the digest, so name it by its tag")
    # The folder is beside the file, since no other place may have the room.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bundle-") as scratch:
        saved = Path(scratch) / IMAGES
        if stack.run(["docker", "save", "--output", str(saved), *needed]):
            raise OpsError(f"the images could not be saved: {path.name} was not written")
        size = stack.change(f"write {path}", lambda: _write(stack, path, saved, needed))
    if size is not None:
        print(path)
        say(f"{len(needed)} images, {size / 1e6:.0f} MB; on the host: tar xf {path.name} {FOLDER}")
    return 0


def load(stack: Stack, options: argparse.Namespace) -> int:
    """Bring in a bundle's images. If any part of it is not as it was written, nothing is changed."""
    if not options.file:
        raise OpsError("FILE=: which bundle? `make load FILE=…`")
    path = Path(options.file).resolve()
    manifest = check(path)
    if manifest.environment != stack.name:
        again = f"make load FILE={options.file} ENV={manifest.environment}"
        raise OpsError(f"{path.name} is for ENV={manifest.environment}: `{again}`")
    here = stack.output(PLATFORM).strip()
    if here != manifest.platform:
        raise OpsError(f"{path.name} has images for {manifest.platform}; this engine runs {here}")
    local = envfile.read(stack.environment.local_file)
    variables = {**manifest.variables, **local, "APP_VERSION": manifest.version}
    if missing := sorted(set(_images(stack.with_variables(**variables))) - set(manifest.images)):
        raise OpsError(
            f"ENV={stack.name} needs {', '.join(missing)} here, which {path.name} does not have: "
            f"take the checkout out of it, too (tar xf {path.name} {FOLDER})"
        )
    with tarfile.open(path, "r:") as tar:
        offset = tar.getmember(IMAGES).offset_data
    with path.open("rb", buffering=0) as bundle:
        bundle.seek(offset)
        if stack.run(["docker", "load", "--quiet"], stdin=bundle):
            raise OpsError(f"the engine did not take the images of {path.name}; nothing else was changed")
    stack.change("compare the layers of the images", lambda: _must_have(stack, manifest, path))
    runs = bool(stack.running())
    if not runs:
        for variable, value in variables.items():
            stack.write(variable, envfile.quoted(value))
    stack.record("load", version=manifest.version, file=path.name)
    follows = f"make deploy VERSION={manifest.version}" if runs else "make up"
    say(f"{manifest.version} is here; to start it, type: {follows} ENV={stack.name}")
    return 0


def check(path: Path) -> Manifest:
    """Return a bundle's manifest. Raises ``OpsError`` if it is no bundle, or not as it was written."""
    if not path.exists():
        raise OpsError(f"FILE={path}: there is no such file")
    try:
        return Manifest(**json.loads(sealed.check(path, MANIFEST)))
    except (sealed.Damaged, ValueError, TypeError) as error:
        raise OpsError(f"{path.name} is not a bundle, or is damaged ({error}): nothing was loaded") from error


def _must_have(stack: Stack, manifest: Manifest, path: Path) -> None:
    """Raise ``OpsError`` if the engine has other images than the bundle."""
    if other := [name for name, layers in manifest.images.items() if _layers(stack, name) != layers]:
        raise OpsError(f"{', '.join(other)}: not what {path.name} has; nothing else was changed")


def _write(stack: Stack, path: Path, saved: Path, needed: list[str]) -> int:
    """Write the bundle, and return its size."""
    manifest = Manifest(
        environment=stack.name,
        version=stack.version,
        platform=stack.output(PLATFORM).strip(),
        images={image: _layers(stack, image) for image in needed},
        variables=envfile.read(stack.environment.local_file),
    )
    files = {f"{FOLDER}/{file}": ROOT / file for file in sorted(_checkout(stack))} | {IMAGES: saved}
    with sealed.writing(path, mode=0o666) as bundle:  # the user's umask decides who can read it
        bundle.add(MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        for name, file in files.items():
            with file.open("rb") as content:
                status = file.stat()
                bundle.add(name, content, size=status.st_size, mode=status.st_mode & 0o777)
    return path.stat().st_size


def _checkout(stack: Stack) -> Iterator[str]:
    """Give the checkout's files: those that git has or, without a repository, those that it would not ignore."""
    if (ROOT / ".git").exists():
        listed = stack.output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
        found = [ROOT / name for name in listed if name]
    else:
        ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[:1] not in "#"]
        found = [file for file in ROOT.rglob("*") if not _is_ignored(file.relative_to(ROOT), ignored)]
    return (str(file.relative_to(ROOT)) for file in found if file.is_file() and not file.is_symlink())


def _is_ignored(file: Path, patterns: list[str]) -> bool:
    """Return whether a pattern of .gitignore has a file, or a folder that it is in."""
    paths = [str(path) for path in (file, *file.parents)]
    return any(
        any(fnmatch(path, pattern.lstrip("/")) for path in paths)
        if "/" in pattern
        else any(fnmatch(part, pattern) for part in file.parts)
        for pattern in patterns
    )


def _images(stack: Stack) -> list[str]:
    """Return the images of the services, and the one that the workers' is built on, which makes certificates."""
    services: dict[str, Any] = stack.model()["services"]
    return sorted({service["image"] for service in services.values()} | {stack.environment.values["PYTHON_IMAGE"]})


def _layers(stack: Stack, image: str) -> list[str]:
    argv = ["docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image]
    layers: list[str] = json.loads(stack.output(argv))
    return layers
