"""Pictures and films: small ones, made here, through the real libraries."""

from __future__ import annotations

import asyncio
import math
import struct
import threading
import zlib
from array import array
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from PIL import Image

from app.components.worker.tasks import media
from app.components.worker.tasks.media import process_video, resize_images
from app.core.config import settings

FPS = 10
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(settings, "WORKER_DATA_DIR", folder)
    return folder


def leftovers(data: Path) -> list[Path]:
    return list((data / "tmp").glob("*"))


def picture(path: Path, size: tuple[int, int] = (80, 60), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert(mode).save(path, **options)
    return path


def film(path: Path, frames: int = 10, size: tuple[int, int] = (64, 48), sound: bool = True, rotation: int = 0) -> Path:
    """Write a film of a changing grey, with a tone."""
    with av.open(str(path), "w") as writer:
        video = writer.add_stream("mpeg4", FPS)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        if rotation:
            video.set_display_rotation(rotation)
        tone = writer.add_stream("aac", 48_000, layout="mono") if sound else None
        for number in range(frames):
            grey = Image.new("RGB", size, (number * 20 % 256,) * 3)
            frame = VideoFrame.from_image(grey)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            writer.mux(video.encode(frame))
        if tone:
            samples = array("f", (math.sin(i / 10) for i in range(48_000 * frames // FPS)))
            for start in range(0, len(samples) - 1024, 1024):
                block = AudioFrame(format="fltp", layout="mono", samples=1024)
                block.planes[0].update(samples[start : start + 1024].tobytes())
                block.sample_rate, block.pts, block.time_base = 48_000, start, Fraction(1, 48_000)
                writer.mux(tone.encode(block))
            writer.mux(tone.encode(None))
        writer.mux(video.encode(None))
    return path


# -- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
async def test_each_kind_keeps_its_format_and_aspect_ratio(suffix: str, kind: str, data: Path) -> None:
    picture(data / f"in.{suffix}")
    written = await resize_images({}, [f"in.{suffix}"], sizes=[40, 20])
    assert [(w["path"], w["width"], w["height"]) for w in written] == [
        (f"resized/in-40.{suffix}", 40, 30),
        (f"resized/in-20.{suffix}", 20, 15),
    ]
    with Image.open(data / "resized" / f"in-20.{suffix}") as small:
        assert (small.format, small.size) == (kind, (20, 15))
    assert leftovers(data) == []


async def test_a_picture_is_never_enlarged(data: Path) -> None:
    picture(data / "in.png")
    (written,) = await resize_images({}, ["in.png"], sizes=[500])
    assert (written["width"], written["height"]) == (80, 60)


async def test_a_picture_is_turned_upright(data: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(data / "in.jpg", exif=exif)
    (written,) = await resize_images({}, ["in.jpg"], sizes=[40])
    assert (written["width"], written["height"]) == (30, 40)
    with Image.open(data / written["path"]) as small:
        assert small.getexif().get(ORIENTATION, 1) == 1


async def test_transparency_and_palettes_survive(data: Path) -> None:
    Image.new("RGBA", (80, 60), (255, 0, 0, 0)).quantize().save(data / "palette.png")
    await resize_images({}, ["palette.png"], sizes=[40])
    with Image.open(data / "resized" / "palette-40.png") as small:
        assert small.mode == "RGBA"
        assert small.getpixel((0, 0))[3] == 0


def bomb(path: Path, side: int) -> None:
    """Write the head of a PNG with so many pixels, and nothing of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
async def test_a_picture_that_would_fill_the_memory_is_refused(data: Path) -> None:
    bomb(data / "bomb.png", 12_000)
    with pytest.raises(ValueError, match=r"'bomb\.png' cannot be read: 12000x12000 are more than"):
        await resize_images({}, ["bomb.png"])


@pytest.mark.parametrize(
    ("paths", "sizes", "said"),
    [
        (["../out.png"], [10], "leads out of the data folder"),
        (["/etc/passwd"], [10], "leads out of the data folder"),
        (["missing.png"], [10], "'missing.png' cannot be read: no such file"),
        (["text.png"], [10], "'text.png' cannot be read"),
        (["a/x.png", "b/x.png"], [10], "two have the same name"),
        (["a/x.png"], [0], "sizes is"),
    ],
)
async def test_what_cannot_be_done_is_said(paths: list[str], sizes: list[int], said: str, data: Path) -> None:
    (data / "text.png").write_text("no picture")
    picture(data / "a" / "x.png")
    with pytest.raises(ValueError, match=said):
        await resize_images({}, paths, sizes=sizes)
    assert leftovers(data) == []


# -- films -------------------------------------------------------------------------------------------------------


async def test_a_film_with_sound(data: Path) -> None:
    film(data / "in.mkv", frames=20)
    result = await process_video({}, "in.mkv", height=24)
    assert result == {
        "path": "processed/in-24.mp4",
        "poster": "processed/in-24.jpg",
        "width": 32,
        "height": 24,
        "frames": 20,
        "dropped": 0,
        "audio": True,
        "duration_s": pytest.approx(2, abs=0.15),
    }
    with av.open(str(data / result["path"])) as written:
        assert written.streams.video[0].codec_context.name in ("h264", "mpeg4")
        assert written.streams.audio[0].codec_context.name == "aac"
        assert sum(1 for _ in written.decode(video=0)) == 20
    with Image.open(data / result["poster"]) as poster:
        assert (poster.format, poster.size) == ("JPEG", (32, 24))
    assert leftovers(data) == []


async def test_a_silent_film_is_never_enlarged(data: Path) -> None:
    film(data / "in.mp4", sound=False)
    result = await process_video({}, "in.mp4", height=1080)
    assert (result["width"], result["height"], result["audio"]) == (64, 48, False)


async def test_a_film_that_players_turn(data: Path) -> None:
    film(data / "in.mp4", rotation=90, sound=False)
    result = await process_video({}, "in.mp4", height=32)
    assert (result["width"], result["height"]) == (24, 32)
    with Image.open(data / result["poster"]) as poster:
        assert poster.size == (24, 32)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.mp4", "no film", "'text.mp4' cannot be read"),
        ("list.m3u8", "#EXTM3U\n#EXTINF:1,\nother.ts\n", "'list.m3u8' cannot be read"),
        ("list.ffconcat", "ffconcat version 1.0\nfile /etc/passwd\n", "'list.ffconcat' cannot be read"),
        ("../x.mp4", None, "leads out of the data folder"),
        ("none.mp4", None, "no such file"),
    ],
)
async def test_a_film_that_is_none(name: str, content: str | None, said: str, data: Path) -> None:
    if content:
        (data / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        await process_video({}, name)
    assert leftovers(data) == []


async def test_what_was_there_stays_when_the_source_breaks_off(data: Path) -> None:
    film(data / "in.mp4", sound=False)
    first = await process_video({}, "in.mp4", height=24)
    before = (data / first["path"]).read_bytes()
    (data / "in.mp4").write_bytes((data / "in.mp4").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"'in\.mp4' cannot be read"):
        await process_video({}, "in.mp4", height=24)
    assert (data / first["path"]).read_bytes() == before
    assert leftovers(data) == []


async def test_a_cancelled_job_waits_for_its_thread_and_leaves_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(data / "in.mp4", frames=3000, sound=False)
    started = threading.Event()
    encode: Callable[..., object] = media._encode

    def slow(*arguments: object) -> object:
        started.set()
        return encode(*arguments)

    monkeypatch.setattr(media, "_encode", slow)
    job = asyncio.create_task(process_video({}, "in.mp4"))
    await asyncio.to_thread(started.wait, 10)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert leftovers(data) == []
    assert not (data / "processed").exists()
