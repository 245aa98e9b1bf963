"""What the pages say: their examples run, their links work, and the commands and keys that they name exist."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings

from aegis_worker.queue import keys
from docs import generate
from ops.config.load import load
from tests.conftest import PASSWORD, ROOT, copy_checkout

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[tuple[str | None, str]]:
    """Python blocks of a page, each with the path that stands above it, if one does."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"(?:^`(\S+)`:\n\n)?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def mail_service() -> AsyncIterator[str]:
    """Busy at first, then it takes the mail."""
    answers = iter([b"429 Too Many\r\nRetry-After: 0", b"200 OK"])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"id": "m1"}'
        head = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (next(answers), len(body))
        writer.write(head + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send"
    server.close()


async def test_the_examples_run(
    tmp_path: Path, redis: ArqRedis, redis_server: RedisSettings, mail_service: str
) -> None:
    copy_checkout(tmp_path)
    for path, code in blocks("examples.md"):
        if path:
            (tmp_path / path).write_text(code)
    url = f"redis://localhost:{redis_server.port}"
    environment = {"PATH": os.environ["PATH"], "ENV": "none", "REDIS_URL": url, "REDIS_PASSWORD": PASSWORD}
    environment["WORKER_QUEUES"] = "system,mail"

    async def app(*arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aegis_worker", *arguments),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )

    worker = await app("worker")
    try:
        job = await app("job", "enqueue", "send_mail", mail_service, "user@example.org", "Hello", "--wait")
        async with asyncio.timeout(20):
            assert await job.communicate() == (b"m1\n", None)

        space: dict[str, Any] = {}
        for path, code in blocks("producers.md"):
            if not path:  # the others are files, of which tests/integration/library makes use
                exec(code, space)
        answer = await space["main"]("localhost", redis_server.port, PASSWORD)
        assert answer["redis_version"]
        redis.job_serializer = space["serializer"].dumps
        assert await space["enqueue"](redis, [mail_service, mail_service, "http://localhost:1"]) == 2
        await space["serve"](redis, mail_service)
    finally:
        worker.terminate()
        await worker.communicate()


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[tuple[Path, str]]:
    """The links of a page to other files here and to headings, each as the file and the heading's anchor."""
    targets = re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", without_code(page))
    parts = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / name).resolve() if name else page, anchor) for name, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE):
        anchor = base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {file.name}#{anchor}"


def test_every_page_is_reached_from_the_index() -> None:
    reached, new = set(), {ROOT / "docs" / "index.md"}
    while new:
        reached |= new
        new = {file for page in new for file, _ in links(page) if file.suffix == ".md"} - reached
    assert set(PAGES) <= reached


def test_the_page_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == generate.cli_page(), "type `make docs`"


def test_the_page_of_keys_has_every_key() -> None:
    page = (ROOT / "docs" / "redis-keys.md").read_text()
    names = {"queue_name": "arq:queue:QUEUE", "key": "KEY"}
    for name, value in vars(keys).items():
        if isinstance(value, str) and value.startswith(("arq:", "worker:")):
            assert f"`{value}" in page, value
        elif inspect.isfunction(value) and name not in ("job_id", "short_name"):
            arguments = {each: names.get(each, each.upper()) for each in inspect.signature(value).parameters}
            key = re.sub("[A-Z]+", lambda part: f"<{part[0].lower()}>", value(**arguments))
            assert f"`{key}`" in page, key


def test_the_messages_that_the_troubleshooting_page_names_exist() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    named = [name for symptom in symptoms for name in re.findall("`([^`]+)`", symptom)]
    messages = [part.strip() for name in named if not name.startswith("make ") for part in re.split("…|ENV=prod", name)]
    files = [file for folder in ("app", "library", "ops") for file in (ROOT / folder).rglob("*.*")]
    code = (
        "".join(file.read_text() for file in files if file.suffix in (".py", ".sh")) + (ROOT / "Makefile").read_text()
    )
    assert len(messages) > 10
    for message in messages:
        assert message in code or message == "SerializationError", message


def test_the_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"(?:`|^)make ([a-z -]+)", page.read_text(), re.MULTILINE):
            assert set(re.findall(r"[a-z-]+", line)) <= targets, (page.name, line)


def test_the_layers_that_pages_name_can_be_used(tmp_path: Path) -> None:
    for folder in ("compose", "app"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(ROOT / "env", tmp_path / "env", ignore=shutil.ignore_patterns("*.local.env"))
    blocks = [block for page in PAGES for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)]
    layered = [block for block in blocks if re.search("^COMPOSE_FILE=", block, re.M)]
    assert layered
    for block in layered:
        own = re.search(r"^ENV=(\w+)$", block, re.M)  # else it is what prod changes
        (tmp_path / "env" / (f"{own[1]}.env" if own else "prod.local.env")).write_text(block)
        load(own[1] if own else "prod", root=tmp_path, shell={})
