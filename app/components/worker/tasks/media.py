"""Images and videos in the data folder. All paths, in arguments and in results, are relative to that folder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from app.components.worker.tasks import files

try:
    import av
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.error import FFmpegError
    from av.video.frame import PictureType, VideoFrame
    from av.video.stream import VideoStream
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError(
        "the media queue needs the extra 'media': set APP_EXTRA=media in env/<ENV>.env and run make up"
    ) from error

T = TypeVar("T")

PICTURES = ("JPEG", "PNG", "WEBP")
JPEG_QUALITY = 85  # of WebP too

#: Demuxers that read only the given file. Others, such as HLS and concat, open files that the text of a file names.
FILMS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf"
VIDEO_CODEC: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
#: Several jobs run at a time, in a container with a few CPUs. By default each would start threads for every CPU of the
#: host, and keep frames in memory for each thread.
THREADS = 2
TICK = Fraction(1, 60_000)  #: seconds; exact for the usual frame rates, and MPEG-4 allows nothing below 1/65535
SAMPLE_RATE = 48_000
POSTER_AT_S = 1.0  #: seconds; videos often begin with black frames


class Stopped(Exception):
    """The job was cancelled, and its thread stops."""


async def resize_images(
    ctx: dict[str, Any], paths: Sequence[str], *, sizes: Sequence[int] = (320, 1280), out: str = "resized"
) -> list[dict[str, Any]]:
    """Write each image (JPEG, PNG, WebP) once for each size. A size is the longer side in pixels.

    The files are ``<out>/<stem>-<size><suffix>``. They replace existing files. Format and aspect ratio do not change.
    The image is turned upright, and is never enlarged. Of an animation, the first image is written. Returns ``source``,
    ``path``, ``width`` and ``height`` of each file. Raises ``ValueError`` if a size is out of bounds, a path is not in
    the data folder, two sources have the same name, or an image cannot be read.
    """
    if not all(1 <= size <= 16_384 for size in sizes):
        raise ValueError(f"sizes is {sizes}, each must be from 1 to 16384")
    if len({Path(path).name for path in paths}) < len(paths):
        raise ValueError("two paths have the same name, and one result would replace the other")
    return await _in_thread(_resize_all, paths, sizes, out)


async def process_video(ctx: dict[str, Any], path: str, *, out: str = "processed", height: int = 480) -> dict[str, Any]:
    """Write a video as MP4 (H.264, and the first sound track as AAC in stereo), and one of its frames as JPEG.

    The files are ``<out>/<stem>-<height>.mp4`` and ``.jpg``. They replace existing files. The aspect ratio does not
    change, and the video is never enlarged. Returns ``path``, ``poster``, ``width`` and ``height`` as shown,
    ``frames``, ``dropped`` (video and audio frames that were not later than the frame before), ``audio`` and
    ``duration_s``. Raises ``ValueError`` if the height is out of bounds, a path is not in the data folder, or the video
    cannot be read. Formats for broadcast and streaming do not say where they end, so an incomplete file in such a
    format is no error: the part that exists is written.
    """
    if not 16 <= height <= 4320:
        raise ValueError(f"height is {height}, it must be from 16 to 4320")
    return await _in_thread(_transcode, path, out, height)


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args, stop)``, which runs in a thread. On cancellation, set ``stop`` and wait for its end."""
    stop = threading.Event()
    thread = asyncio.create_task(asyncio.to_thread(work, *args, stop))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(thread, return_exceptions=True)
        raise


def _resize_all(paths: Sequence[str], sizes: Sequence[int], out: str, stop: threading.Event) -> list[dict[str, Any]]:
    written = []
    for path in paths:
        for size in sizes:
            if stop.is_set():
                raise Stopped
            written.append(_resize(path, size, out))
    return written


def _resize(path: str, size: int, out: str) -> dict[str, Any]:
    source, target = _existing(path), files.inside(out) / f"{Path(path).stem}-{size}{Path(path).suffix}"
    with _naming(path, Exception), Image.open(source, formats=PICTURES) as original:
        _check_pixels(original.width, original.height)
        kind = original.format
        picture: Image.Image = original
        if original.mode in ("1", "P") or "transparency" in original.info:  # such colours cannot be interpolated
            picture = original.convert("RGBA" if original.has_transparency_data else "RGB")
        # The image is turned after it was made small, so that a JPEG is decoded in a small size.
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        picture = ImageOps.exif_transpose(picture)
    with files.replacing(target) as partial:
        picture.save(partial, kind, quality=JPEG_QUALITY, icc_profile=picture.info.get("icc_profile"))
    return {"source": path, "path": _relative(target), "width": picture.width, "height": picture.height}


def _transcode(path: str, out: str, height: int, stop: threading.Event) -> dict[str, Any]:
    source, target = _existing(path), files.inside(out) / f"{Path(path).stem}-{height}.mp4"
    poster = target.with_suffix(".jpg")
    with (
        _naming(path, ValueError, FFmpegError),
        files.replacing(target) as new_film,
        files.replacing(poster) as new_poster,
    ):
        rotation, size = _shape(source, height)
        shot, dropped = _encode(source, new_film, size, rotation, stop)
        small = shot.to_image(width=size[0], height=size[1])  # type: ignore[no-untyped-call]
        picture: Image.Image = small.rotate(rotation, expand=True)
        picture.save(new_poster, "JPEG", quality=JPEG_QUALITY)
        with av.open(str(new_film), "r") as written:
            result = {
                "path": _relative(target),
                "poster": _relative(poster),
                "width": picture.width,
                "height": picture.height,
                "frames": written.streams.video[0].frames,
                "dropped": dropped,
                "audio": bool(written.streams.audio),
                "duration_s": round((written.duration or 0) / av.time_base, 3),
            }
    return result


def _shape(source: Path, height: int) -> tuple[int, tuple[int, int]]:
    """Return the degrees by which a player turns the video, counter-clockwise, and the new size before the turn."""
    with _film(source) as (reader, stream):
        for frame in reader.decode(stream):  # the first frame has the rotation
            width = round(frame.width * float(stream.sample_aspect_ratio or 1))
            shown = width if frame.rotation % 180 else frame.height
            # Even numbers, because colour is stored for two by two pixels.
            new_width, new_height = (
                max(2, side * min(height, shown) // shown // 2 * 2) for side in (width, frame.height)
            )
            return frame.rotation, (new_width, new_height)
    raise ValueError("the file has no video stream")


def _encode(
    source: Path, target: Path, size: tuple[int, int], rotation: int, stop: threading.Event
) -> tuple[VideoFrame, int]:
    """Write the video. Return the frame for its poster, and how many frames were dropped. Raises ``Stopped``."""
    shot: VideoFrame | None = None
    with _film(source) as (reader, stream), av.open(str(target), "w", options={"movflags": "+faststart"}) as writer:
        video = writer.add_stream(VIDEO_CODEC, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = TICK
        video.codec_context.thread_count = THREADS
        video.set_display_rotation(rotation)
        sound = writer.add_stream("aac", SAMPLE_RATE, layout="stereo") if reader.streams.audio else None
        start_s = (reader.start_time or 0) / av.time_base
        pictures, sounds = _Clock(start_s), _Clock(start_s)
        for frame in reader.decode(stream, *reader.streams.audio[:1]):
            if stop.is_set():
                raise Stopped
            if isinstance(frame, AudioFrame) and sound and sounds.place(frame):
                writer.mux(sound.encode(frame))
            elif isinstance(frame, VideoFrame) and pictures.place(frame):
                shot = frame if shot is None or frame.time <= POSTER_AT_S else shot
                frame.pict_type = PictureType.NONE  # else the encoder keeps the key frames of the source
                writer.mux(video.encode(frame))
        writer.mux(video.encode(None))
        if sound:
            writer.mux(sound.encode(None))
    if shot is None:
        raise ValueError("the file has no video stream")
    return shot, pictures.dropped + sounds.dropped


class _Clock:
    """Sets the times of the frames of one stream, from the start of the video.

    A frame without a time follows the frame before.
    """

    def __init__(self, start_s: float) -> None:
        self.dropped = 0
        self._start_s = start_s
        self._next_s = 0.0
        self._last: int | None = None

    def place(self, frame: VideoFrame | AudioFrame) -> bool:
        """Set the time of a frame. Return False if the frame must be dropped, because times must increase."""
        time_s = self._next_s if frame.time is None else frame.time - self._start_s
        pts = round(time_s / TICK)
        if self._last is not None and pts <= self._last:
            self.dropped += 1
            return False
        self._next_s = time_s + float(frame.duration * (frame.time_base or 0))
        self._last = frame.pts = pts
        frame.time_base = TICK
        return True


@contextmanager
def _film(source: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    # -genpts: for H.264 in AVI, FFmpeg guesses wrong times if the file has none.
    options = {"format_whitelist": FILMS, "protocol_whitelist": "file", "fflags": "-genpts"}
    with av.open(str(source), "r", options=options) as reader:
        if not reader.streams.video:
            raise ValueError("the file has no video stream")
        stream = reader.streams.video[0]
        if not stream.codec_context:
            raise ValueError("there is no decoder for its video stream")
        _check_pixels(stream.width, stream.height)
        stream.codec_context.thread_count = THREADS
        yield reader, stream


def _existing(path: str) -> Path:
    source = files.inside(path)
    if not source.is_file():  # a pipe, for example, would block forever
        raise ValueError(f"{path!r} cannot be read: no such file in the data folder")
    return source


def _relative(path: Path) -> str:
    return str(path.relative_to(files.root()))


def _check_pixels(width: int, height: int) -> None:
    """Raise ``ValueError`` if an image is too large for the memory. Pillow itself only warns up to twice this limit."""
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} are more than {Image.MAX_IMAGE_PIXELS} pixels")


@contextmanager
def _naming(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors about the content of a file into a ``ValueError`` that names the file."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error
