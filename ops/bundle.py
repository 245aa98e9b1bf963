"""Everything for a host without a network in one file: the checkout, the images, and the digests of both.

A bundle is a tar of ``SHA256SUMS``, over all that follows, ``manifest.json``, the checkout's files in a folder, and
``images.tar`` as the last, so that the engine can read it out of the bundle itself. Secrets are not in it: the host
makes its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from . import commands, envfile, lifecycle, releases
from .configuration import ROOT, ConfigurationError
from .stack import Stack, say

FOLDER = "aegis-worker"
IMAGES = "images.tar"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
PLATFORM = ["docker", "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is for and has."""

    environment: str
    version: str
    platform: str  #: of the images, such as linux/amd64
    images: dict[str, list[str]]  #: the digests of each one's layers, which are the same in every engine
    variables: dict[str, str]  #: what the machine that made it had changed of the environment


def write(stack: Stack, options: argparse.Namespace) -> int:
    """Write what `make up` would start here into one file."""
    name = f"aegis-worker-{stack.name}-{stack.version}.bundle.tar"
    path = Path(options.file).resolve() if options.file else ROOT / ".local" / name
    if options.file and not path.parent.is_dir():
        raise ConfigurationError(f"FILE={options.file}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigurationError(f"FILE={options.file} is a folder: name a file, as in {options.file}/{name}")
    lifecycle.base_images(stack)
    if not releases.is_deployed(stack) and stack.run(commands.compose(stack.environment, "build", "--quiet")):
        raise ConfigurationError("the images could not be built: no bundle was written")
    path.parent.mkdir(exist_ok=True)
    images = _images(stack)
    if digests := [image for image in images if "@" in image]:
        raise ConfigurationError(f"{digests[0]}: an engine that loads it forgets the digest, so name it by its tag")
    # Beside the file, since it may be the one place with room for it; what is half written goes with the folder.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bundle-") as scratch:
        archive = Path(scratch) / IMAGES
        if stack.run(["docker", "save", "--output", str(archive), *images]):
            raise ConfigurationError(f"the images could not be saved: {path.name} was not written")
        stack.change(f"write {path}", lambda: _write(stack, path, archive, images))
    if not stack.dry_run:
        print(path)
        say(f"{len(images)} images, {path.stat().st_size / 1e6:.0f} MB; on the host: tar xf {path.name} {FOLDER}")
    return 0


def load(stack: Stack, options: argparse.Namespace) -> int:
    """Bring in a bundle's images; before that, nothing is changed where any of it is not as it was written."""
    if not options.file:
        raise ConfigurationError("FILE=: which bundle? `make load FILE=…`")
    path = Path(options.file).resolve()
    manifest, offset = check(path)
    if manifest.environment != stack.name:
        again = f"make load FILE={options.file} ENV={manifest.environment}"
        raise ConfigurationError(f"{path.name} is for ENV={manifest.environment}: `{again}`")
    here = stack.output(PLATFORM).strip()
    if here != manifest.platform:
        raise ConfigurationError(f"{path.name} has images for {manifest.platform}; this engine runs {here}")
    variables = {**manifest.variables, **_local(stack), "APP_VERSION": manifest.version}
    if missing := sorted(set(_images(stack.given(**variables))) - set(manifest.images)):
        raise ConfigurationError(
            f"ENV={stack.name} needs {', '.join(missing)} here, which {path.name} has not: "
            f"take the checkout out of it, too (tar xf {path.name} {FOLDER})"
        )
    with path.open("rb", buffering=0) as bundle:
        bundle.seek(offset)
        if stack.run(["docker", "load", "--quiet"], stdin=bundle):
            raise ConfigurationError(f"the engine did not take the images of {path.name}; nothing else was changed")
    other = [name for name, layers in manifest.images.items() if not stack.dry_run and _layers(stack, name) != layers]
    if other:
        raise ConfigurationError(f"{', '.join(other)}: not what {path.name} has; nothing else was changed")
    runs = bool(stack.running())
    if not runs:
        for variable, value in variables.items():
            stack.write(variable, envfile.written(value))
    lifecycle.record(stack, "load", version=manifest.version, file=path.name)
    follows = f"make deploy VERSION={manifest.version}" if runs else "make up"
    say(f"{manifest.version} is here; to start it, type: {follows} ENV={stack.name}")
    return 0


def check(path: Path) -> tuple[Manifest, int]:
    """Return a bundle's manifest, and where in the file its images begin.

    Raises ``ConfigurationError`` where it is none, or where a part is missing, too much or not as it was written.
    """
    found: dict[str, str] = {}
    text, offset = b"", 0
    try:
        with tarfile.open(path, "r:") as tar:
            expected = _sums(tar)
            for entry in tar:
                if entry.name != SUMS and (file := tar.extractfile(entry)):
                    if entry.name == MANIFEST:
                        text = file.read()
                        file.seek(0)
                    found[entry.name], offset = _digest(file), entry.offset_data
        if found != expected:
            bad = min(name for name in found.keys() | expected if found.get(name) != expected.get(name))
            raise ValueError(f"{bad} is not as it was written")
        return Manifest(**json.loads(text)), offset
    except FileNotFoundError:
        raise ConfigurationError(f"FILE={path}: there is no such file") from None
    except (OSError, tarfile.TarError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path.name} is no bundle, or damaged ({error}): nothing was loaded") from error


def _sums(tar: tarfile.TarFile) -> dict[str, str]:
    first = tar.next()
    if first is None or first.name != SUMS or (file := tar.extractfile(first)) is None:
        raise ValueError(f"it does not begin with {SUMS}")
    lines = file.read().decode().splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _write(stack: Stack, path: Path, archive: Path, images: list[str]) -> None:
    manifest = Manifest(
        environment=stack.name,
        version=stack.version,
        platform=stack.output(PLATFORM).strip(),
        images={image: _layers(stack, image) for image in images},
        variables=_local(stack),
    )
    (described := archive.with_name(MANIFEST)).write_text(json.dumps(asdict(manifest), indent=1))
    files = {
        MANIFEST: described,
        **{f"{FOLDER}/{file}": ROOT / file for file in sorted(_checkout(stack))},
        IMAGES: archive,
    }
    sums = archive.with_name(SUMS)
    sums.write_text("".join(f"{_digest(file.open('rb'))}  {name}\n" for name, file in files.items()))
    bundle = archive.with_name("bundle.tar")
    with tarfile.open(bundle, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, file in {SUMS: sums, **files}.items():
            tar.add(file, name, filter=_anonymous)
    bundle.replace(path)


def _checkout(stack: Stack) -> Iterator[str]:
    """Give the checkout's files, those that git would have; where there is no repository, by what it ignores."""
    if (ROOT / ".git").exists():
        listed = stack.output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
        found = [ROOT / name for name in listed if name]
    else:
        ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line[:1] not in "#"]
        found = [file for file in ROOT.rglob("*") if not _is_ignored(file.relative_to(ROOT), ignored)]
    return (str(file.relative_to(ROOT)) for file in found if file.is_file() and not file.is_symlink())


def _is_ignored(file: Path, patterns: list[str]) -> bool:
    return any(
        fnmatch(str(file), pattern) if "/" in pattern else any(fnmatch(part, pattern) for part in file.parts)
        for pattern in patterns
    )


def _images(stack: Stack) -> list[str]:
    """Return what runs, and what the workers' image is built on: it has what makes certificates, and few bytes more."""
    services: dict[str, Any] = stack.model()["services"]
    return sorted({service["image"] for service in services.values()} | {stack.environment.values["PYTHON_IMAGE"]})


def _layers(stack: Stack, image: str) -> list[str]:
    argv = ["docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image]
    layers: list[str] = json.loads(stack.output(argv))
    return layers


def _local(stack: Stack) -> dict[str, str]:
    file = stack.environment.local_file
    return envfile.parse(file.read_text())[0] if file.exists() else {}


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    with file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
