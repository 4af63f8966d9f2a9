"""What is peculiar about images is said in the report of a run, and in inspect."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from streamenc import io
from streamenc.cli.look.inspection import inspect_file
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from tests.support.clips import write_clip


def play(path: Path, **options: Any) -> tuple[StreamInfo, list[Frame], str]:
    """Also all remarks, as `inspect` has them."""
    source = io.source(str(path), kind="video", **options)
    assert isinstance(source, BlockingSource)
    try:
        info, frames = source.open_blocking(), list(iter(source.read, None))
    finally:
        source.close_blocking()
    if not options:
        said = [value for what, value in inspect_file(str(path)) if what == "remark"]
        assert said == list(source.remarks)
    return info, frames, " / ".join(source.remarks)


def write(path: Path, codec: str = "libx264", count: int = 3, **changes: Any) -> Path:
    """A clip of a white disc on grey, 128 x 96; changes: attributes of its encoder."""
    y, x = np.mgrid[:96, :128]
    disc = np.where((x - 64) ** 2 + (y - 48) ** 2 < 30**2, 235, 90).astype(np.uint8)
    options = changes.pop("options", {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", **options})
        stream.width, stream.height = 128, 96
        stream.pix_fmt = changes.pop("pix_fmt", "yuv420p")
        for name, value in changes.items():
            setattr(stream.codec_context, name, value)
        for number in range(count):
            image = av.VideoFrame.from_ndarray(disc, "gray").reformat(format=stream.pix_fmt)
            image.pts = number
            for name, value in changes.items():
                if hasattr(image, name):
                    setattr(image, name, value)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def extent(frame: Frame) -> tuple[int, int]:
    """Width and height of the disc."""
    bright = frame.data[1, 0] > 160
    return int(np.ptp(np.flatnonzero(bright.any(axis=0)))), int(
        np.ptp(np.flatnonzero(bright.any(axis=1)))
    )


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 171), (Fraction(8, 9), 114)])
def test_oblong_pixels_become_square(
    tmp_path: Path, name: str, aspect: Fraction, width: int
) -> None:
    path = write(tmp_path / name, sample_aspect_ratio=aspect)
    info, frames, said = play(path)
    assert info.shape == (3, None, 96, width)
    wide, high = extent(frames[0])
    assert wide == pytest.approx(high * aspect, abs=2)
    assert f"pixels are {aspect.numerator}:{aspect.denominator}, not square" in said
    assert f"from 128 x 96 to {width} x 96" in said
    info, frames, said = play(path, square="no")
    assert info.shape == (3, None, 96, 128) and "were left so" in said


def test_square_pixels_are_not_spoken_of(tmp_path: Path) -> None:
    for number, aspect in enumerate((Fraction(1), Fraction(0), Fraction(1280, 1281))):
        path = write(tmp_path / f"{number}.mkv", sample_aspect_ratio=aspect)
        info, _, said = play(path)
        assert info.shape == (3, None, 96, 128) and not said


def test_an_aspect_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", sample_aspect_ratio=Fraction(9, 1))
    info, _, said = play(path)
    assert info.shape == (3, None, 96, 128) and "left so" in said


def test_interlaced_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", options={"x264-params": "tff=1"}, count=4)
    _, _, said = play(path)
    assert said.count("interlaced, two moments") == 1 and "bwdif" in said


@pytest.mark.parametrize(("number", "word"), [(16, "PQ"), (18, "HLG"), (1, "")])
def test_hdr(tmp_path: Path, number: int, word: str) -> None:
    path = write(tmp_path / "a.mkv", color_trc=number)
    _, _, said = play(path)
    assert (f"HDR ({word})" in said) if word else not said


def test_hdr_in_avif(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (64, 48)).save(path)
    assert not play(path)[2]
    raw = bytearray(path.read_bytes())
    at = raw.index(b"colrnclx") + 10
    raw[at : at + 2] = b"\0\x10"
    path.write_bytes(raw)
    assert "HDR (PQ)" in play(path)[2]


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_transparent_pixels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture = Image.new("RGBA", (32, 32), (200, 20, 20, 255))
    picture.save(path)
    assert not play(path)[2]
    picture.paste((10, 100, 10, 0), (0, 0, 8, 8))
    picture.save(path, **({"exact": True, "lossless": True} if ending == "webp" else {}))
    _, (frame,), said = play(path)
    assert said.startswith("transparent pixels") and "white" in said
    wanted = (255, 255, 255) if ending == "gif" else (10, 100, 10)
    assert tuple(frame.data[:, 0, 2, 2]) == wanted


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_images_that_turn_in_mid_stream_keep_their_proportions(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.ts", count=10)
    second = write_clip(
        tmp_path / "b.ts", count=10, size="112x192", times=lambda n: (10 + n) / 25,
        images_of=[np.full((3, 192, 112), 200, np.uint8)] * 10,
    )  # fmt: skip
    info, frames, said = play(joined(tmp_path / "c.ts", first, second))
    assert info.shape == (3, None, 112, 192)
    flags = [index for index, frame in enumerate(frames) if frame.discontinuity]
    (at,) = flags
    seconds = float(frames[at].pts * info.time_base)
    assert said == (
        f"from {seconds:.2f} s on, images are 112 x 192; they were scaled to the 192 x 112 of the "
        "beginning, as 65 x 112 with black beside it"
    )
    last = frames[-1].data[:, 0]
    assert np.abs(last[:, :, 70:120].astype(int) - 200).max() <= 3
    assert not last[:, :, :60].any() and not last[:, :, 132:].any()


def test_a_broadcast_that_changes_the_shape_of_its_pixels(tmp_path: Path) -> None:
    wide = write(tmp_path / "a.ts", "mpeg2video", 10, sample_aspect_ratio=Fraction(4, 3))
    narrow = write(tmp_path / "b.ts", "mpeg2video", 10, sample_aspect_ratio=Fraction(1))
    info, frames, said = play(joined(tmp_path / "c.ts", wide, narrow))
    assert info.shape == (3, None, 96, 171)
    for frame, aspect in ((frames[0], 4 / 3), (frames[-1], 1)):
        width, height = extent(frame)
        assert width == pytest.approx(height * aspect, abs=2)
    assert "pixels are 4:3" in said and "images are 128 x 96" in said


def test_each_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", color_trc=16, count=30)
    source = io.source(str(path), kind="video")
    assert isinstance(source, BlockingSource)
    source.open_blocking()
    list(iter(source.read, None))
    source.close_blocking()
    assert len(source.remarks) == 1
