"""Small video files for tests, whose images say their own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec import codecs_available

from streamenc.io.media.pattern import PatternSource, read_number

FPS = 25
RATE = 48_000
OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20"},
    "libsvtav1": {"preset": "12", "crf": "20", "svtav1-params": "lp=1"},
}


def images(count: int, size: str = "192x112", kind: str = "motion") -> Iterator[Any]:
    """uint8 (3, height, width), the first says 0."""
    source = PatternSource(kind, size, live=False, seconds=count / 25, fps=25)
    source.open_blocking()
    for frame in iter(source.read, None):
        yield frame.data[:, 0]


def encoded(codec: str) -> str:
    """`codec`, where this build of PyAV has it; skips the test with a reason otherwise."""
    if codec not in codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    return codec


def write_clip(
    path: Path,
    codec: str = "libx264",
    count: int = 50,
    size: str = "192x112",
    fps: int | Fraction = FPS,
    times: Callable[[int], float | Fraction] | None = None,
    sound: Any = None,
    pix_fmt: str = "yuv420p",
    keyframes: int = 12,
    format: str | None = None,
    sound_shift: float = 0.0,
    images_of: Iterable[Any] | None = None,
) -> Path:
    """A clip of `count` images. times: seconds of image n. sound: (1, samples) at 48 kHz."""
    width, height = map(int, size.split("x"))
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(
            encoded(codec), rate=fps, width=width, height=height, pix_fmt=pix_fmt,
            options={**OPTIONS.get(codec, {}), "g": str(keyframes)},
        )  # fmt: skip
        time_base = Fraction(1, 90_000) if times else 1 / Fraction(fps)
        if times:
            stream.codec_context.time_base = time_base
        packets = []
        for number, image in enumerate(images_of or images(count, size)):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(image.transpose(1, 2, 0)), "rgb24"
            )
            frame.time_base = time_base
            frame.pts = round(times(number) / time_base) if times else number
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if sound is not None:
            packets += encode_sound(container, sound, format or path.suffix, sound_shift)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def encode_sound(container: Any, sound: Any, kind: str, shift: float) -> list[Any]:
    codec = "libopus" if kind in (".webm", ".mkv") else "aac"
    stream = container.add_stream(codec, rate=RATE, layout="mono")
    packets = []
    for at in range(0, sound.shape[1], 960):
        piece = np.ascontiguousarray(sound[:, at : at + 960])
        frame = av.AudioFrame.from_ndarray(piece, "fltp", "mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = at + round(shift * RATE)
        packets += stream.encode(frame)
    return packets + list(stream.encode(None))


def numbers(frames: Iterable[Any]) -> list[int]:
    """What the images of video frames say."""
    return [read_number(frame.data) for frame in frames]
