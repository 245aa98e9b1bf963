"""Pictures and films: small ones, made here, through the real libraries."""

from __future__ import annotations

import asyncio
import math
import struct
import zlib
from array import array
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from PIL import Image, ImageCms

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


def grey(number: int) -> Image.Image:
    return Image.new("RGB", (64, 48), (number * 20 % 256,) * 3)


def bright_left(number: int) -> Image.Image:
    whole = Image.new("RGB", (64, 48))
    whole.paste((255, 255, 255), (0, 0, 32, 48))
    return whole


def film(
    path: Path,
    frames: int = 10,
    *,
    sound: bool = False,
    rotation: int = 0,
    codec: str = "mpeg4",
    pixel_shape: Fraction | None = None,
    starts_at_s: int = 0,
    shows: Callable[[int], Image.Image] = grey,
) -> Path:
    """Write a film, with a tone where it is to have sound."""
    with av.open(str(path), "w") as writer:
        video = writer.add_stream(codec, FPS)
        video.width, video.height = 64, 48
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            video.set_display_rotation(rotation)
        if pixel_shape:
            video.codec_context.sample_aspect_ratio = pixel_shape
        tone = writer.add_stream("aac", 48_000, layout="mono") if sound else None
        for number in range(frames):
            frame = VideoFrame.from_image(shows(number))
            frame.pts, frame.time_base = number + starts_at_s * FPS, Fraction(1, FPS)
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
        # The dark edge, at the top in the file, belongs to the right.
        assert small.getpixel((1, 20))[0] > 200
        assert small.getpixel((28, 20))[0] < 50


async def test_transparency_and_palettes_survive(data: Path) -> None:
    Image.new("RGBA", (80, 60), (255, 0, 0, 0)).quantize().save(data / "palette.png")
    await resize_images({}, ["palette.png"], sizes=[40])
    with Image.open(data / "resized" / "palette-40.png") as small:
        assert small.mode == "RGBA"
        assert small.getpixel((0, 0))[3] == 0


async def test_one_colour_named_as_transparent_stays_so(data: Path) -> None:
    Image.new("RGB", (80, 60), (1, 2, 3)).save(data / "in.png", transparency=(1, 2, 3))
    await resize_images({}, ["in.png"], sizes=[40])
    with Image.open(data / "resized" / "in-40.png") as small:
        assert small.mode == "RGBA"  # mixed with its neighbours, it would be another colour
        assert small.getpixel((0, 0))[3] == 0


async def test_colour_profiles_stay(data: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture(data / "in.jpg", icc_profile=profile)
    await resize_images({}, ["in.jpg"], sizes=[40])
    with Image.open(data / "resized" / "in-40.jpg") as small:
        assert small.info["icc_profile"] == profile


async def test_of_several_pictures_in_a_jpeg_the_first_is_taken(data: Path) -> None:
    picture(data / "in.mpo", save_all=True, append_images=[Image.new("RGB", (80, 60))]).rename(data / "in.jpg")
    with Image.open(data / "in.jpg") as several:
        assert several.format == "MPO"
    await resize_images({}, ["in.jpg"], sizes=[40])
    with Image.open(data / "resized" / "in-40.jpg") as small:
        assert (small.format, small.size) == ("JPEG", (40, 30))


async def test_cancelled_it_ends_between_two_files(data: Path) -> None:
    picture(data / "in.png")
    job = asyncio.create_task(resize_images({}, ["in.png"], sizes=range(1, 2001)))
    async with asyncio.timeout(10):
        while not (data / "resized").exists():
            await asyncio.sleep(0.001)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    written = sorted((data / "resized").iterdir())
    assert leftovers(data) == []
    assert 0 < len(written) < 2000
    await asyncio.sleep(0.05)
    assert sorted((data / "resized").iterdir()) == written


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
        (["../out.png"], [10], "must be a relative path inside the data folder"),
        (["/etc/passwd"], [10], "must be a relative path inside the data folder"),
        (["missing.png"], [10], "'missing.png' cannot be read: no such file"),
        (["text.png"], [10], "'text.png' cannot be read"),
        (["film.gif"], [10], "'film.gif' cannot be read"),
        (["half.png"], [10], "'half.png' cannot be read"),
        (["link.png"], [10], "must be a relative path inside the data folder"),
        (["a"], [10], "'a' cannot be read: no such file"),
        (["a/x.png", "b/x.png"], [10], "two paths have the same name"),
        (["a/x.png"], [0], "sizes is"),
    ],
)
async def test_what_cannot_be_done_is_said(paths: list[str], sizes: list[int], said: str, data: Path) -> None:
    (data / "text.png").write_text("no picture")
    picture(data / "film.gif")
    picture(data / "a" / "x.png")
    picture(data / "half.png").write_bytes((data / "a" / "x.png").read_bytes()[:150])
    (data / "link.png").symlink_to(picture(data.parent / "outside.png"))
    with pytest.raises(ValueError, match=said):
        await resize_images({}, paths, sizes=sizes)
    assert leftovers(data) == []
    assert not (data / "resized").exists()


async def test_results_lie_in_the_data_folder_as_well(data: Path) -> None:
    picture(data / "in.png")
    with pytest.raises(ValueError, match=r"'\.\./elsewhere' must be a relative path inside the data folder"):
        await resize_images({}, ["in.png"], out="../elsewhere")
    assert not (data.parent / "elsewhere").exists()


# -- films -------------------------------------------------------------------------------------------------------


async def test_a_film_with_sound(data: Path) -> None:
    film(data / "in.mkv", frames=20, sound=True)
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
        sound = written.streams.audio[0]
        assert (sound.codec_context.name, sound.layout.name) == ("aac", "stereo")
        assert sum(frame.samples for frame in written.decode(audio=0)) >= 93 * 1024  # all that was put in
    with av.open(str(data / result["path"])) as written:
        shades = [frame.to_image().getpixel((5, 5))[0] for frame in written.decode(video=0)]
        assert shades == pytest.approx([number * 20 % 256 for number in range(20)], abs=12)
    content = (data / result["path"]).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it can be shown while it is loaded
    assert leftovers(data) == []


async def test_the_picture_is_taken_after_a_second(data: Path) -> None:
    film(data / "in.mp4", frames=30)
    result = await process_video({}, "in.mp4")
    with Image.open(data / result["poster"]) as poster:
        assert (poster.format, poster.size) == ("JPEG", (64, 48))
        assert poster.getpixel((5, 5))[0] == pytest.approx(FPS * 20, abs=12)


async def test_a_silent_film_is_never_enlarged(data: Path) -> None:
    film(data / "in.mp4")
    result = await process_video({}, "in.mp4", height=1080)
    assert (result["width"], result["height"], result["audio"]) == (64, 48, False)


async def test_a_height_that_the_format_cannot_have_is_rounded_down(data: Path) -> None:
    film(data / "in.mp4")
    result = await process_video({}, "in.mp4", height=31)
    assert (result["width"], result["height"]) == (40, 30)


async def test_a_film_of_pixels_that_are_not_square(data: Path) -> None:
    film(data / "in.mkv", pixel_shape=Fraction(2, 1))
    result = await process_video({}, "in.mkv")
    assert (result["width"], result["height"]) == (128, 48)


@pytest.mark.parametrize(("rotation", "bright", "dark"), [(90, (12, 28), (12, 4)), (-90, (12, 4), (12, 28))])
async def test_a_film_that_players_turn(
    rotation: int, bright: tuple[int, int], dark: tuple[int, int], data: Path
) -> None:
    film(data / "in.mp4", rotation=rotation, shows=bright_left)
    result = await process_video({}, "in.mp4", height=32)
    assert (result["width"], result["height"]) == (24, 32)
    with Image.open(data / result["poster"]) as poster:
        assert poster.size == (24, 32)
        assert poster.getpixel(bright)[0] > 200
        assert poster.getpixel(dark)[0] < 50
    with av.open(str(data / result["path"])) as written:
        assert next(written.decode(video=0)).rotation == rotation


async def test_a_film_whose_clock_starts_late_is_moved_to_the_front(data: Path) -> None:
    film(data / "in.ts", frames=20, starts_at_s=7)
    with av.open(str(data / "in.ts")) as source:
        assert source.start_time >= 7 * av.time_base
    result = await process_video({}, "in.ts")
    assert result["duration_s"] == pytest.approx(2, abs=0.15)
    with Image.open(data / result["poster"]) as poster:
        assert poster.getpixel((5, 5))[0] == pytest.approx(FPS * 20, abs=12)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "in.avi"), ("libx264", "in.mpg"), ("mpeg4", "in.avi")])
async def test_frames_without_times_follow_each_other(codec: str, name: str, data: Path) -> None:
    film(data / name, codec=codec, frames=30)
    result = await process_video({}, name)
    assert (result["frames"], result["dropped"]) == (30, 0)
    assert result["duration_s"] == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("sound", [False, True])
async def test_what_is_not_later_than_before_is_dropped_and_counted(sound: bool, data: Path) -> None:
    twice = film(data / "in.ts", sound=sound)
    twice.write_bytes(twice.read_bytes() * 2)
    result = await process_video({}, "in.ts")
    assert result["frames"] == 10
    assert result["dropped"] > 10 if sound else result["dropped"] == 10


async def test_key_frames_are_set_anew(data: Path) -> None:
    film(data / "in.avi", codec="mjpeg", shows=bright_left)  # each frame is a key frame
    result = await process_video({}, "in.avi")
    with av.open(str(data / result["path"])) as written:
        assert sum(frame.key_frame for frame in written.decode(video=0)) == 1


@pytest.mark.parametrize("height", [15, 4321])
async def test_a_height_has_bounds(height: int, data: Path) -> None:
    film(data / "in.mp4")
    with pytest.raises(ValueError, match=f"height is {height}"):
        await process_video({}, "in.mp4", height=height)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.mp4", b"no film", r"'text\.mp4' cannot be read"),
        ("empty.mp4", b"", r"'empty\.mp4' cannot be read"),
        ("../x.mp4", None, "must be a relative path inside the data folder"),
        ("/etc/passwd", None, "must be a relative path inside the data folder"),
        ("link.mkv", None, "must be a relative path inside the data folder"),
        ("none.mp4", None, "no such file"),
    ],
)
async def test_a_film_that_is_none(name: str, content: bytes | None, said: str, data: Path) -> None:
    if content is not None:
        (data / name).write_bytes(content)
    (data / "link.mkv").symlink_to(film(data.parent / "outside.mkv"))
    with pytest.raises(ValueError, match=said):
        await process_video({}, name)
    assert leftovers(data) == []
    assert not (data / "processed").exists()


async def test_a_film_of_which_there_is_only_the_head(data: Path) -> None:
    head = film(data / "in.mkv").read_bytes()[:200]
    (data / "in.mkv").write_bytes(head)
    with pytest.raises(ValueError, match=r"'in\.mkv' cannot be read"):
        await process_video({}, "in.mkv")


async def test_a_film_of_an_unknown_kind(data: Path) -> None:
    content = film(data / "in.mkv").read_bytes()
    (data / "in.mkv").write_bytes(content.replace(b"V_MPEG4/ISO/ASP", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(ValueError, match=r"'in\.mkv' cannot be read: there is no decoder for its video stream"):
        await process_video({}, "in.mkv")


async def test_sound_alone_is_no_film(data: Path) -> None:
    with av.open(str(data / "in.mp4"), "w") as writer:
        tone = writer.add_stream("aac", 48_000, layout="mono")
        block = AudioFrame(format="fltp", layout="mono", samples=1024)
        block.planes[0].update(bytes(4096))
        block.sample_rate, block.pts, block.time_base = 48_000, 0, Fraction(1, 48_000)
        writer.mux(tone.encode(block))
        writer.mux(tone.encode(None))
    with pytest.raises(ValueError, match=r"'in\.mp4' cannot be read: the file has no video stream"):
        await process_video({}, "in.mp4")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../outside.ts\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile inside.ts\n"),
    ],
)
async def test_a_list_that_names_other_files_is_no_film(name: str, content: str, data: Path) -> None:
    film(data / "inside.ts")
    film(data.parent / "outside.ts")
    (data / name).write_text(content)
    with av.open(str(data / name)) as unguarded:  # it does lead there
        assert sum(1 for _ in unguarded.decode(video=0)) == 10
    with pytest.raises(ValueError, match=f"'{name}' cannot be read"):
        await process_video({}, name)


async def test_a_film_that_would_fill_the_memory_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(data / "in.mp4")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match=r"'in\.mp4' cannot be read: 64x48 are more than 3071 pixels"):
        await process_video({}, "in.mp4")


async def test_what_was_there_stays_when_the_source_breaks_off(data: Path) -> None:
    source = film(data / "in.mp4", frames=60)
    first = await process_video({}, "in.mp4", height=24)
    before = [(data / first[name]).read_bytes() for name in ("path", "poster")]
    content = bytearray(source.read_bytes())
    middle = content.index(b"mdat") + 2000
    content[middle : middle + 2000] = bytes(2000)  # so that it breaks after its beginning was written
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"'in\.mp4' cannot be read"):
        await process_video({}, "in.mp4", height=24)
    assert [(data / first[name]).read_bytes() for name in ("path", "poster")] == before
    assert leftovers(data) == []


async def cancelled_while_it_writes(job: asyncio.Task[Any], data: Path) -> None:
    async with asyncio.timeout(10):
        while not leftovers(data):
            await asyncio.sleep(0.001)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_a_cancelled_job_waits_for_its_thread_and_leaves_nothing(data: Path) -> None:
    film(data / "in.mp4", frames=2000)
    await cancelled_while_it_writes(asyncio.create_task(process_video({}, "in.mp4")), data)
    assert leftovers(data) == []  # at once: a thread that still ran would have its file there
    assert not (data / "processed").exists()


async def test_a_cancelled_job_leaves_what_was_there(data: Path) -> None:
    film(data / "in.mp4", frames=2000)
    target = data / "processed" / "in-480.mp4"
    target.parent.mkdir()
    target.write_text("before")
    await cancelled_while_it_writes(asyncio.create_task(process_video({}, "in.mp4")), data)
    assert target.read_text() == "before"
