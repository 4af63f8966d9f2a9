"""Files of pictures: whole and all of them, or refused in words."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamenc import io
from streamenc.cli.look.inspection import inspect_file
from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.pictures import album


def play(path: str | Path, **options: Any) -> tuple[StreamInfo, list[Frame], BlockingSource]:
    source = io.source(str(path), kind="video", **options)
    assert isinstance(source, BlockingSource)
    try:
        return source.open_blocking(), list(iter(source.read, None)), source
    finally:
        source.close_blocking()


def pixels(frame: Frame) -> Any:
    """(height, width, 3), as integers that can be subtracted."""
    return frame.data[:, 0].transpose(1, 2, 0).astype(int)


def painting(width: int, height: int) -> Image.Image:
    """Soft colours, no two regions alike."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((41, 60), (70, 33), (25, 90))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.fixture
def heif() -> Any:
    return pytest.importorskip("pillow_heif")


def test_a_photograph_of_many_tiles_is_whole(tmp_path: Path, heif: Any) -> None:
    path, made = tmp_path / "a.HEIC", painting(700, 560)
    heif.from_pillow(made).save(path, tile_size=256, quality=95)
    assert b"grid" in path.read_bytes()
    info, (frame,), source = play(path)
    assert info.shape == (3, None, 560, 700) and info.rate == 25
    assert (info.kind, info.dtype, frame.pts, frame.duration) == ("video", "uint8", 0, 1)
    assert np.abs(pixels(frame) - np.asarray(made)).mean() < 3
    assert not source.remarks and not source.lost
    rows = dict(inspect_file(str(path)))
    assert rows["shape"] == "3x?x560x700 uint8"


def test_of_several_pictures_the_primary_one_is_taken(tmp_path: Path, heif: Any) -> None:
    path = tmp_path / "a.heic"
    file = heif.HeifFile()
    for colour in ("red", "lime", "blue"):
        file.add_from_pillow(Image.new("RGB", (64, 48), colour))
    file.save(path, primary_index=1)
    _, (frame,), source = play(path)
    assert np.abs(pixels(frame) - (0, 255, 0)).max() <= 4
    assert "holds 3 pictures; the primary one" in " ".join(source.remarks)
    assert any("primary" in value for what, value in inspect_file(str(path)) if what == "remark")


def test_without_its_extra_heic_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UsageError, match=r"HEIC.*pip install 'streamenc\[heif\]'"):
        play(path)


@pytest.mark.parametrize("cut", [30, 200, 0.5, 0.95])
def test_a_damaged_photograph_is_refused(tmp_path: Path, heif: Any, cut: float) -> None:
    path = tmp_path / "a.heic"
    heif.from_pillow(painting(320, 200)).save(path, quality=95)
    raw = path.read_bytes()
    path.write_bytes(raw[: cut if cut > 1 else int(cut * len(raw))])
    with pytest.raises(MediaError, match=r"a\.heic' as HEIC") as raised:
        play(path)
    assert "\n" not in str(raised.value)


def test_a_photograph_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, heif: Any
) -> None:
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("L", (256, 256))).save(path)
    raw = path.read_bytes()
    old = b"ispe" + struct.pack(">III", 0, 256, 256)
    assert old in raw
    path.write_bytes(raw.replace(old, b"ispe" + struct.pack(">III", 0, 9000, 9000)))
    with pytest.raises(MediaError, match="9000 x 9000; at most|as HEIC"):
        play(path)


def test_a_sequence_in_heic_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.heics"
    path.write_bytes(struct.pack(">I", 24) + b"ftyphevc\0\0\0\0msf1hevc" + bytes(100))
    with pytest.raises(MediaError, match="a sequence of images in HEIC"):
        play(path)
    with pytest.raises(MediaError, match="a sequence of images in HEIC"):
        inspect_file(str(path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined, method-assign]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_tiles_from_the_network_are_refused(tmp_path: Path, heif: Any, server: str) -> None:
    heif.from_pillow(painting(700, 560)).save(tmp_path / "a.heic", tile_size=256)
    with pytest.raises(MediaError, match="HEIC or AVIF.*save it and"):
        play(f"{server}/a.heic")
    with pytest.raises(MediaError, match=r"HEIC or AVIF.*\(heic\)"):
        album.refuse_here("heic")


def box(kind: bytes, *parts: bytes, full: int | None = None) -> bytes:
    content = b"".join(parts)
    if full is not None:
        content = struct.pack(">I", full) + content
    return struct.pack(">I", 8 + len(content)) + kind + content


def content_of(raw: bytes, kind: bytes) -> bytes:
    at = raw.index(kind)
    return raw[at + 4 : at - 4 + int.from_bytes(raw[at - 4 : at], "big")]


def avif_of_tiles(path: Path, made: Image.Image, tile: int, *properties: bytes) -> None:
    """An AVIF of 2 x 2 tiles, which Pillow cannot write: item 1 is the grid, 2 to 5 its tiles."""
    tiles = []
    for corner in ((0, 0), (tile, 0), (0, tile), (tile, tile)):
        part = made.crop((*corner, corner[0] + tile, corner[1] + tile))
        part.save(path, quality=95, subsampling="4:2:0")
        tiles.append(path.read_bytes())
    av1c = box(b"av1C", content_of(tiles[0], b"av1C"))
    data = [
        struct.pack(">BBBBHH", 0, 0, 1, 1, *made.size), *(content_of(t, b"mdat") for t in tiles)
    ]  # fmt: skip
    entry = [
        box(b"infe", struct.pack(">HH4sB", n, 0, b"grid" if n == 1 else b"av01", 0), full=2 << 24)
        for n in range(1, 6)
    ]
    ispe = [box(b"ispe", struct.pack(">II", *size), full=0) for size in (made.size, (tile, tile))]
    pixi = box(b"pixi", b"\3\x08\x08\x08", full=0)
    colr = box(b"colr", b"nclx" + struct.pack(">HHHB", 1, 13, 6, 0x80))
    own = bytes(0x86 + n for n in range(len(properties)))  # essential ones
    mapped = [struct.pack(">HBBBB", 1, 3 + len(own), 1, 3, 4) + own]
    mapped += [struct.pack(">HBBBBB", n, 4, 2, 3, 4, 0x85) for n in range(2, 6)]
    ftyp = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")

    def meta(start: int) -> bytes:
        places, at = [], start
        for number, content in enumerate(data, 1):
            places.append(struct.pack(">HHHII", number, 0, 1, at, len(content)))
            at += len(content)
        return box(
            b"meta",
            box(b"hdlr", b"\0\0\0\0pict" + bytes(13), full=0),
            box(b"pitm", struct.pack(">H", 1), full=0),
            box(b"iloc", struct.pack(">BBH", 0x44, 0, 5), *places, full=0),
            box(b"iinf", struct.pack(">H", 5), *entry, full=0),
            box(b"iref", box(b"dimg", struct.pack(">HH4H", 1, 4, 2, 3, 4, 5)), full=0),
            box(
                b"iprp",
                box(b"ipco", *ispe, pixi, colr, av1c, *properties),
                box(b"ipma", struct.pack(">I", 5), *mapped, full=0),
            ),
            full=0,
        )

    start = len(ftyp) + len(meta(0)) + 8
    path.write_bytes(ftyp + meta(start) + box(b"mdat", *data))


def test_avif_of_tiles_is_whole(tmp_path: Path) -> None:
    path, made = tmp_path / "a.avif", painting(240, 240)
    avif_of_tiles(path, made, 128)
    info, (frame,), source = play(path)
    assert info.shape == (3, None, 240, 240)
    assert np.abs(pixels(frame) - np.asarray(made)).mean() < 3
    assert not source.remarks
    clap = box(b"clap", struct.pack(">8I", 100, 1, 100, 1, 0, 1, 0, 1))
    avif_of_tiles(path, made, 128, clap)
    info, _, source = play(path)
    assert info.shape == (3, None, 240, 240)
    assert "cropped (clap)" in " ".join(source.remarks)


def test_avif_has_the_range_that_its_container_states(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (64, 48), (60, 60, 60)).save(path, quality=100, range="full")
    _, (full,), _ = play(path)
    assert np.abs(pixels(full) - 60).max() <= 1
    raw = bytearray(path.read_bytes())
    at = raw.index(b"colrnclx") + 14
    assert raw[at] == 0x80
    raw[at] = 0
    path.write_bytes(raw)
    _, (limited,), _ = play(path)
    assert np.abs(pixels(limited) - (60 - 16) * 255 / 219).max() <= 1


@pytest.mark.parametrize("ending", ["webp", "avif"])
def test_all_pictures_of_an_animation_come_at_their_times(tmp_path: Path, ending: str) -> None:
    path, colours = tmp_path / f"a.{ending}", [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    first, *others = (Image.new("RGB", (64, 48), colour) for colour in colours)
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 300])
    info, frames, source = play(path)
    seconds = [float(frame.pts * info.time_base) for frame in frames]
    assert seconds == pytest.approx([0, 0.1, 0.3], abs=0.002)
    lasting = [float(frame.duration * info.time_base) for frame in frames]
    assert lasting == pytest.approx([0.1, 0.2, 0.3], abs=0.002)
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(pixels(frame) - colour).max() <= 4
    assert not source.remarks and not any(frame.discontinuity for frame in frames)
    assert dict(inspect_file(str(path)))["packets"] == "3 with 3 items"
    _, fewer, _ = play(path, fps=Fraction(4))
    assert [float(frame.pts * info.time_base) for frame in fewer] == pytest.approx(
        [0, 0.3], abs=0.01
    )


def test_half_an_animation_gives_what_is_whole_and_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    first, *others = (painting(128 + n, 128).crop((n, 0, n + 128, 128)) for n in range(4))
    first.save(path, save_all=True, append_images=others, quality=90)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(MediaError, match="as animated WebP"):
        play(path)


def test_a_huge_animation_is_refused_before_room_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    size = (16_000 - 1).to_bytes(3, "little")
    head = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size + size
    path.write_bytes(b"RIFF" + struct.pack("<I", len(head) + 100) + head + bytes(100))
    with pytest.raises(MediaError, match="16000 x 16000; at most"):
        play(path)


def test_avif_without_a_decoder_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 16)).save(path)
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    with pytest.raises(UsageError, match="AVIF.*upgrade pillow"):
        play(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_tiles_from_a_pipe_are_refused(tmp_path: Path, heif: Any) -> None:
    whole, pipe = tmp_path / "a.heic", tmp_path / "pipe"
    heif.from_pillow(painting(300, 300)).save(whole, tile_size=128)
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb") as file:
            try:
                file.write(whole.read_bytes())
            except BrokenPipeError:
                pass

    threading.Thread(target=feed, daemon=True).start()
    with pytest.raises(MediaError):
        play(pipe)
