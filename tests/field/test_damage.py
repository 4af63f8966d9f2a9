"""A damaged picture is never passed on as a whole one: it is left out, counted, and told of."""

from __future__ import annotations

import io as bytesio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame
from streamenc.io.media.videosource import VideoSource
from tests.support.clips import encoded, images

SIZE = (192, 112)
Packets = Callable[[int, bytes], bytes | None]


def clip(path: Path, count: int = 150, **options: str) -> Path:
    """H.264 with pictures that are predicted from later ones, and a key picture every 50."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            encoded("libx264"), rate=25, width=SIZE[0], height=SIZE[1], pix_fmt="yuv420p",
            options={"g": "50", "crf": "20", "preset": "fast", "threads": "1", **options},
        )  # fmt: skip
        for number, image in enumerate(images(count, f"{SIZE[0]}x{SIZE[1]}")):
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def play(path: Path | str) -> tuple[list[Frame], VideoSource]:
    source = VideoSource(str(path))
    try:
        source.open_blocking()
        return list(iter(source.read, None)), source  # type: ignore[arg-type]
    finally:
        source.close_blocking()


def remade(path: Path, change: Packets) -> Path:
    """A copy whose packets went through `change`; None leaves one out."""
    made = path.with_stem(path.stem + "-damaged")
    with av.open(str(path)) as source, av.open(str(made), "w") as target:
        (stream,) = source.streams.video
        copied = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            data = change(number, bytes(packet)) if packet.size else None
            if data is None:
                continue
            new = av.Packet(data)
            new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
            new.is_keyframe, new.stream = packet.is_keyframe, copied
            target.mux(new)
    return made


def damaged(got: list[Frame], whole: list[Frame]) -> list[int]:
    """The pts of pictures that are not as in the whole clip."""
    right = {frame.pts: frame.data for frame in whole}
    return [frame.pts for frame in got if not np.array_equal(frame.data, right.get(frame.pts))]


def left_out_once(got: list[Frame], whole: list[Frame]) -> set[int]:
    """The numbers of the pictures that are missing; each hole is flagged where it ends."""
    numbers = {frame.pts: number for number, frame in enumerate(whole)}
    there = [numbers[frame.pts] for frame in got]
    holes = [i for i in range(1, len(there)) if there[i] != there[i - 1] + 1]
    assert [i for i, frame in enumerate(got) if frame.discontinuity] == holes
    return {*range(len(whole))} - {*there}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_percent_of_a_broadcast_is_lost(tmp_path: Path, seed: int) -> None:
    path = clip(tmp_path / "a.ts")
    whole, _ = play(path)
    raw, chance = path.read_bytes(), random.Random(seed)
    packets = [raw[at : at + 188] for at in range(0, len(raw), 188)]
    kept = [p for number, p in enumerate(packets) if number < 40 or chance.random() > 0.01]
    assert len(kept) < len(packets)
    path.write_bytes(b"".join(kept))
    got, source = play(path)
    assert len(whole) == 150 and damaged(got, whole) == []
    assert 20 < len(got) < len(whole) and source.lost > 0
    assert any(frame.discontinuity for frame in got)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda number, data: None if number == 84 else data, 83),
        (lambda number, data: data[: len(data) // 2] if number == 84 else data, 83),
    ],
    ids=["left out", "cut short"],
)
def test_what_is_built_on_a_damaged_picture_is_left_out_with_it(
    tmp_path: Path, change: Packets, lost: int
) -> None:
    path = clip(tmp_path / "a.mkv", bf="0")
    whole, _ = play(path)
    got, source = play(remade(path, change))
    assert damaged(got, whole) == []
    assert left_out_once(got, whole) == {*range(84, 100)}
    assert source.lost in (15, 16)


def test_a_picture_that_refreshes_itself_is_whole_after_a_cycle(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", bf="0", g="25", **{"intra-refresh": "1"})
    whole, _ = play(path)
    got, _ = play(remade(path, lambda number, data: None if number == 30 else data))
    assert damaged(got, whole) == []
    missing = left_out_once(got, whole)
    assert missing == {*range(30, 75)}


def test_nothing_of_a_whole_clip_is_left_out(tmp_path: Path) -> None:
    for name, options in (
        ("a.mp4", {"x264-params": "open-gop=1:b-pyramid=strict"}),
        ("b.ts", {"slices": "4", "bf": "3"}),
        ("c.mkv", {"g": "25", "intra-refresh": "1", "bf": "0"}),
    ):
        frames, source = play(clip(tmp_path / name, 100, **options))
        assert len(frames) == 100 and source.lost == 0 and source.broken == ""
        assert not any(frame.discontinuity for frame in frames)


def photograph() -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 12, (96, 128, 3))
    wave = 128 + 60 * np.sin(np.arange(128) / 9)[None, :, None]
    return Image.fromarray(np.clip(wave + noise, 0, 255).astype(np.uint8))


def saved(format: str, **options: Any) -> bytes:
    file = bytesio.BytesIO()
    photograph().save(file, format, **options)
    return file.getvalue()


def stills() -> Iterator[Any]:
    for name, format, options in (
        ("a.jpg", "JPEG", {}),
        ("b.jpg", "JPEG", {"progressive": True}),
        ("a.png", "PNG", {}),
        ("a.webp", "WEBP", {}),
        ("a.tif", "TIFF", {}),
        ("b.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("a.gif", "GIF", {}),
        ("a.bmp", "BMP", {}),
    ):
        yield pytest.param(name, format, options, id=f"{name[0]}{format}")


@pytest.mark.parametrize(("name", "format", "options"), [*stills()])
def test_half_an_image_is_none(tmp_path: Path, name: str, format: str, options: Any) -> None:
    path = tmp_path / name
    data = saved(format, **options)
    path.write_bytes(data)
    frames, source = play(path)
    assert len(frames) == 1 and source.lost == 0 and source.broken == ""
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match="no video in it can be decoded: .*cut short"):
        play(path)


@pytest.mark.parametrize("name", ["tiles", "jpeg"])
def test_images_that_ffmpeg_does_not_decode_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.tif"
    if name == "jpeg":
        path.write_bytes(saved("TIFF", compression="jpeg"))
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, np.asarray(photograph()), tile=(16, 16))
    with pytest.raises(MediaError, match="tiled or JPEG-compressed: .* save it as PNG"):
        play(path)


def test_torn_frames_of_a_camera_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.mjpeg"
    whole = saved("JPEG")
    torn = whole[: len(whole) // 3] + whole[len(whole) // 2 :]
    path.write_bytes(b"".join([whole, torn, whole, whole[: len(whole) // 2] + b"\xff\xd9", whole]))
    frames, source = play(path)
    assert [frame.discontinuity for frame in frames] == [False, True, True]
    assert source.lost == 2
    assert all(np.array_equal(frame.data, frames[0].data) for frame in frames)


def test_a_film_of_images_that_was_cut_short_ends_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    noise = np.random.default_rng(1).integers(0, 255, (4, 40, 40, 3), dtype=np.uint8)
    first, *more = map(Image.fromarray, noise)
    first.save(path, save_all=True, append_images=more, duration=100)
    whole, source = play(path)
    assert len(whole) == 4 and source.broken == ""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 5 // 8])
    got, source = play(path)
    assert len(got) == 2 and source.lost == 1 and damaged(got, whole) == []
    assert "no end mark" in source.broken and "cut short" in source.broken
