"""Finds a secret wherever it turns up: in any encoding, in all that shows what containers, images and processes are."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

#: What it is, and what is in it.
Source = tuple[str, bytes]


def forms(secret: str) -> dict[str, bytes]:
    """Return how a secret reads, by encoding."""
    plain = secret.encode()
    made = {"plain": plain, "percent": quote(secret, safe="").encode(), "hex": plain.hex().encode()}
    made["HEX"] = made["hex"].upper()
    for shift in range(3):
        # Within a longer text it may begin at each of three places; its first and last characters are shared.
        encoded = b64encode(b"\0" * shift + plain)[-(-8 * shift // 6) : 8 * (shift + len(plain)) // 6]
        made[f"base64, {shift}"] = encoded
        made[f"base64url, {shift}"] = encoded.translate(bytes.maketrans(b"+/", b"-_"))
    return made


def leaks(secrets: Mapping[str, str], sources: Iterable[Source]) -> list[str]:
    """Return which secret is where, and how it reads there; empty is good."""
    wanted = [(name, form, text) for name, secret in secrets.items() for form, text in forms(secret).items()]
    return [
        f"{source}: {name} ({form})" for source, content in sources for name, form, text in wanted if text in content
    ]


def output(*command: str, folder: Path | None = None) -> bytes:
    """Return all that a command says, however it ends."""
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240, check=False
    )
    return done.stdout


def of_container(container: str) -> Iterator[Source]:
    yield "docker inspect", output("docker", "inspect", container)
    yield "docker logs", output("docker", "logs", "--details", container)
    yield "docker top", output("docker", "top", container)
    for file in ("environ", "cmdline"):
        yield file, output("docker", "exec", container, "sh", "-c", f"cat /proc/[0-9]*/{file}")
    yield "docker diff", output("docker", "diff", container)


def of_image(image: str) -> Iterator[Source]:
    yield "image inspect", output("docker", "image", "inspect", image)
    yield "image history", output("docker", "history", "--no-trunc", "--format", "{{json .}}", image)
    with tarfile.open(fileobj=io.BytesIO(output("docker", "save", image))) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                content = file.read()
                yield "image layer", gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def of_folder(folder: Path, *without: str) -> Iterator[Source]:
    for file in folder.rglob("*"):
        relative = file.relative_to(folder)
        if relative.parts[0] not in without and file.is_file():
            yield str(relative), file.read_bytes()


class Processes:
    """Collects the command line and the environment of every process of the host, containers' included."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for file in ("cmdline", "environ"):
                    with suppress(OSError):
                        self._seen.add((process / file).read_bytes())
            time.sleep(0.002)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def sources(self) -> list[Source]:
        """What was seen until now."""
        return [("a process", content) for content in self._seen.copy()]
