"""Upkeep tasks, called as what they are: coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis

from app.components.worker.tasks import files
from app.components.worker.tasks.system import check_url, cleanup_temp_files, system_health_check
from app.core.config import settings
from tests.conftest import free_port


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "WORKER_DATA_DIR", tmp_path / "data")
    return tmp_path / "data"


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a/../x", "out/x", "loop/x", "nul\0"])
def test_a_path_that_leads_out_is_refused(path: str, data: Path) -> None:
    files.root()
    (data / "out").symlink_to("/etc")
    (data / "loop").symlink_to(data / "loop")
    with pytest.raises(ValueError, match="path "):
        files.inside(path)


def test_an_absolute_path_is_refused_though_it_leads_inside(data: Path) -> None:
    with pytest.raises(ValueError, match="must be a relative path inside the data folder"):
        files.inside(str(data / "x"))


def test_a_link_that_stays_inside_is_followed(data: Path) -> None:
    files.root()
    (data / "link").symlink_to("a")
    assert files.inside("link/b") == data.resolve() / "a" / "b"


def test_a_path_inside_need_not_exist(data: Path) -> None:
    assert files.inside("a/b.txt") == data.resolve() / "a" / "b.txt"


def test_a_new_file_takes_its_place_whole_or_not_at_all(data: Path) -> None:
    target = files.inside("out/x.txt")
    with files.replacing(target) as partial:
        partial.write_text("first")
    with contextlib.suppress(KeyError), files.replacing(target) as partial:
        partial.write_text("half of the sec")
        raise KeyError
    assert target.read_text() == "first"
    assert list(files.tmp().iterdir()) == []


# -- cleanup_temp_files ------------------------------------------------------------------------------------------


def aged(path: Path, hours: float) -> Path:
    """Make a file that has lain unchanged for so long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * 10)
    os.utime(path, (time.time() - hours * 3600,) * 2)
    return path


async def test_what_is_old_goes_and_what_is_new_stays(data: Path) -> None:
    old, nested, new = aged(data / "tmp/old", 25), aged(data / "tmp/a/b/old", 25), aged(data / "tmp/new", 23)
    beside = aged(data / "other", 99)
    assert await cleanup_temp_files({}) == {"deleted": 2, "bytes": 20, "kept": 3}
    assert not old.exists()
    assert not nested.exists()
    assert new.exists()
    assert beside.exists()


async def test_a_folder_goes_when_it_is_empty_and_old(data: Path) -> None:
    folder = data / "tmp" / "empty"
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))
    assert (await cleanup_temp_files({}))["deleted"] == 1
    assert not folder.exists()


async def test_an_old_folder_with_something_new_in_it_stays(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = aged(data / "tmp" / "folder" / "new", 1)
    os.utime(new.parent, (0, 0))
    assert await cleanup_temp_files({}) == {"deleted": 0, "bytes": 0, "kept": 2}
    assert new.exists()
    assert caplog.text == ""


async def test_two_cleanups_at_once_share_the_work(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        aged(data / "tmp" / str(number), 25)
    first, second = await asyncio.gather(cleanup_temp_files({}), cleanup_temp_files({}))
    assert first["deleted"] + second["deleted"] == 1000
    assert first["kept"] + second["kept"] == 0
    assert caplog.text == ""


async def test_what_a_link_leads_to_stays(data: Path, tmp_path: Path) -> None:
    elsewhere = aged(tmp_path / "elsewhere" / "precious", 99)
    files.tmp()
    for name, target in (("file", elsewhere), ("folder", elsewhere.parent)):
        link = data / "tmp" / name
        link.symlink_to(target)
        os.utime(link, (0, 0), follow_symlinks=False)
    assert (await cleanup_temp_files({}))["deleted"] == 2
    assert elsewhere.exists()


async def test_a_link_in_place_of_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    precious = aged(tmp_path / "elsewhere" / "precious", 99)
    files.root()
    (data / "tmp").symlink_to(precious.parent)
    with pytest.raises(ValueError, match="must be a folder, not a link"):
        await cleanup_temp_files({})
    assert precious.exists()


@pytest.mark.parametrize("age", [-1, float("nan")])
async def test_an_age_is_0_or_more(age: float) -> None:
    with pytest.raises(ValueError, match=f"max_age_s={age} must be 0 or more"):
        await cleanup_temp_files({}, max_age_s=age)


# -- system_health_check, check_url ------------------------------------------------------------------------------


async def test_health_tells_of_host_process_and_redis(redis: ArqRedis) -> None:
    facts = await system_health_check({"redis": redis})
    assert facts["pid"] == os.getpid()
    assert facts["disk_free"] > 0
    assert facts["redis_ping_ms"] > 0
    assert facts["redis_used_memory"] > 0


Serve = Callable[[bytes], Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that answers every request with the same bytes, and goes on with the body for ever."""
    servers = []

    async def start(head: bytes) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.01)

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    yield start
    for server in servers:
        server.close()


@pytest.fixture
async def ctx(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    monkeypatch.setattr(settings, "WORKER_CHECK_URL_PRIVATE", True)
    async with httpx.AsyncClient(timeout=5, follow_redirects=True) as http:
        yield {"http": http}


async def test_a_url_that_answers_as_expected_though_its_body_never_ends(serve: Serve, ctx: dict[str, Any]) -> None:
    url = await serve(b"HTTP/1.1 204 Fine")
    found = await check_url(ctx, url, expect=204)
    assert found["status"] == 204
    assert 0 <= found["seconds"] < 5


async def test_a_url_that_answers_something_else(serve: Serve, ctx: dict[str, Any]) -> None:
    url = await serve(b"HTTP/1.1 503 Busy")
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1.* answers 503, not 200") as caught:
        await check_url(ctx, url.replace("//", "//me:geheim@"))
    assert "geheim" not in str(caught.value)


async def test_a_server_that_speaks_something_else(serve: Serve, ctx: dict[str, Any]) -> None:
    url = await serve(b"no HTTP")
    with pytest.raises(RuntimeError, match="does not answer: RemoteProtocolError"):
        await check_url(ctx, url)


async def test_a_url_that_does_not_answer_and_its_password(ctx: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="does not answer") as caught:
        await check_url(ctx, f"http://me:geheim@127.0.0.1:{free_port()}/")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "example.org", "http://", "http://h:x/", "ftp://h/"])
async def test_what_is_no_url_of_the_web_is_refused(url: str, ctx: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must begin with http|is not valid"):
        await check_url(ctx, url)


@pytest.mark.parametrize("port", ["0", "-1", "99999"])
async def test_a_port_that_cannot_be_is_refused(port: str, ctx: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must have a port from 1 to 65535"):
        await check_url(ctx, f"http://127.0.0.1:{port}/")
