"""Pictures and sound that say of themselves what nothing is: refused before room is made."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from streamenc import io
from streamenc.errors import MediaError
from streamenc.graph.node import BlockingSource
from tests.support.media import write_wav


def png(width: int, height: int, *, moves: bool) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    if moves:
        control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 25, 0, 0)
        chunks[1:1] = [(b"acTL", struct.pack(">II", 3, 0)), (b"fcTL", control)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def peak_bytes() -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("moves", [False, True])
def test_pictures(tmp_path: Path, moves: bool) -> None:
    path = tmp_path / ("a.apng" if moves else "a.png")
    path.write_bytes(png(16_000, 16_000, moves=moves))  # FFmpeg's own bound is above that
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    source = io.source(str(path), "video")
    assert isinstance(source, BlockingSource)
    with pytest.raises(MediaError, match="more than the 67108864 pixels that are taken"):
        source.open_blocking()
    source.close_blocking()
    assert peak_bytes() - before < 50 << 20


@pytest.mark.parametrize("rate", [1, 10, 19, 20, 999])
def test_sound_that_is_a_measurement(tmp_path: Path, rate: int) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((1, 100)), rate)
    source = io.source(str(path))
    assert isinstance(source, BlockingSource)
    with pytest.raises(MediaError, match=f"1000 to 1e\\+07 samples a second; got {rate}"):
        source.open_blocking()
    source.close_blocking()


def test_a_list_that_lists_itself(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros((1, 1000)), 8000)
    lists = {"one": "two", "two": "one", "self": "self"}
    for name, listed in lists.items():
        text = f"ffconcat version 1.0\nfile a.wav\nfile {listed}.ffconcat\n"
        (tmp_path / f"{name}.ffconcat").write_text(text)
    for name, listed in lists.items():
        source = io.source(str(tmp_path / f"{name}.ffconcat"))
        assert isinstance(source, BlockingSource)
        with pytest.raises(MediaError, match=f"lists '{listed}.ffconcat', which is a list itself"):
            source.open_blocking()
        source.close_blocking()


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    source = io.source(str(tmp_path / "**wav"))
    assert isinstance(source, BlockingSource)
    with pytest.raises(MediaError, match="there is no file"):
        source.open_blocking()
