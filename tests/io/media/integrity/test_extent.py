"""What headers promise, in files made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.io.media.integrity.extent import shortfall

SEGMENT = b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67"
BOX = struct.pack(">I4s4x", 12, b"ftyp")
PAGE = b"OggS\0%c" + bytes(20) + b"\1\5hello"


def chunk(name: bytes, size: int, data: bytes = b"") -> bytes:
    return name + struct.pack("<I", size) + data


def said(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return shortfall(path)


@pytest.mark.parametrize(
    ("data", "promised"),
    [
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", 6, b"123456"), 0),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"LIST", 3, b"abc\0") + chunk(b"data", 6, b"1234"), 38),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", 0, b"1234"), 0),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", 2_000_000_000, b"1234"), 0),
        (
            b"RF64\xff\xff\xff\xffWAVE"
            + chunk(b"ds64", 28, struct.pack("<QQ12x", 0, 5_000_000_000))
            + chunk(b"data", 0xFFFFFFFF, b"1234"),
            5_000_000_056,
        ),
        (b"RIFX\0\0\0\0WAVEdata" + struct.pack(">I", 9) + b"1234", 29),
        (chunk(b"RIFF", 12, b"AVI " + chunk(b"LIST", 0)), 0),
        (chunk(b"RIFF", 4, b"AVI ") + chunk(b"RIFF", 100, b"AVIX"), 120),
        (b"FORM" + struct.pack(">I", 100) + b"AIFF", 108),
        (b"FORM\xff\xff\xff\xffAIFF", 0),
        (b".snd" + struct.pack(">II", 24, 100) + bytes(12), 124),
        (b".snd" + struct.pack(">II", 24, 0xFFFFFFFF) + bytes(12), 0),
        (b"caff\0\1\0\0data" + struct.pack(">Q", 50) + b"12", 70),
        (b"caff\0\1\0\0data" + struct.pack(">q", -1) + b"12", 0),
        (SEGMENT + b"\x85hello", 0),
        (SEGMENT + b"\x88hello", 22),
        (SEGMENT + b"\x01\xff\xff\xff\xff\xff\xff\xffhello", 0),
        (BOX + struct.pack(">I4s", 9, b"mdat") + b"1", 0),
        (BOX + struct.pack(">I4s", 100, b"mdat") + b"1", 112),
        (BOX + struct.pack(">I4sQ", 1, b"mdat", 2**33) + b"1", 2**33 + 12),
        (BOX + struct.pack(">I4s", 0, b"mdat") + b"1", 0),
    ],
)
def test_bytes_that_headers_promise(tmp_path: Path, data: bytes, promised: int) -> None:
    what = said(tmp_path / "a", data)
    if promised:
        assert what.startswith(f"holds {len(data):,} of the {promised:,} bytes")
    else:
        assert what == ""


def test_marks_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert said(path, PAGE % 4) == ""
    assert "no last page" in said(path, PAGE % 0)
    assert "within a page" in said(path, (PAGE % 4)[:-1])
    assert "within a page" in said(path, (PAGE % 4)[:10])
    assert said(path, b"GIF89a" + bytes(20) + b"\0;") == ""
    assert "no end mark" in said(path, b"GIF89a" + bytes(20))
    packet = b"G" + bytes(187)
    assert said(path, 5 * packet) == ""
    assert "within a packet" in said(path, 5 * packet + b"G123")


@given(st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"OggS", b"FLV\1", b"caff\0\1\0\0", SEGMENT, BOX,
                        b"ID3\4\0\0\0\0\0\5", b"\xff\xfb\x90\0", b"GIF89a", b".snd"]),
       st.binary(max_size=100))  # fmt: skip
def test_nonsense_is_no_error(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "nonsense"
    assert isinstance(said(path, head + data), str)


def test_what_is_no_file_says_nothing(tmp_path: Path) -> None:
    assert shortfall(tmp_path / "none") == "" and shortfall(tmp_path) == ""
