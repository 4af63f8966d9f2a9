"""Headers of WAV, read without FFmpeg."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.io.media.incoming.wavehead import (
    ReadAt,
    WaveHead,
    bytes_of,
    read_wave_head,
    tag_bytes,
)
from tests.support.piped import chunk, wave_bytes


def of(data: bytes) -> ReadAt:
    return lambda offset, size: data[offset : offset + size]


def test_what_it_says() -> None:
    data = wave_bytes(bytes(96), bits=24, size=3, channels=2, rate=48_000)
    head = read_wave_head(of(data))
    assert head == WaveHead(1, 2, 48_000, 24, 3, False, False, data_at=44, data_bytes=96)
    assert (head.codec, head.padded) == ("pcm_s24le", False)
    data = wave_bytes(bytes(96), size=4, valid=24, order=">")
    head = read_wave_head(of(data))
    assert head is not None and head.extensible and head.big_endian
    assert (head.bits, head.size, head.codec, head.padded) == (24, 4, "pcm_s32be", True)


@pytest.mark.parametrize("claimed", [0, 0x7FF00000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_nobody_knew(claimed: int) -> None:
    head = read_wave_head(of(wave_bytes(bytes(10), claimed=claimed)))
    assert head is not None and head.data_bytes is None


@pytest.mark.parametrize(
    ("tag", "bits", "size", "codec"),
    [(1, 8, 1, "pcm_u8"), (3, 32, 4, "pcm_f32le"), (3, 64, 8, "pcm_f64le"), (6, 8, 1, "pcm_alaw"),
     (7, 8, 1, "pcm_mulaw"), (2, 4, 1, ""), (0x55, 0, 1, ""), (1, 48, 6, "")],
)  # fmt: skip
def test_codecs(tag: int, bits: int, size: int, codec: str) -> None:
    head = read_wave_head(of(wave_bytes(bytes(96), tag=tag, bits=bits, size=size)))
    assert head is not None and head.codec == codec


def test_a_block_size_that_nothing_else_confirms_is_not_believed() -> None:
    data = bytearray(wave_bytes(bytes(96)))
    data[32:34] = (8).to_bytes(2, "little")  # the bytes a second stay those of 2 bytes a sample
    head = read_wave_head(of(bytes(data)))
    assert head is not None and head.size == 2


def test_chunks_before_and_between() -> None:
    data = wave_bytes(bytes(96), before=[chunk("<", b"JUNK", bytes(27)), chunk("<", b"ds64", b"")])
    head = read_wave_head(of(data))
    assert head is not None and head.data_bytes == 96
    assert data[head.data_at - 8 : head.data_at - 4] == b"data"


@given(st.binary(max_size=80))
def test_any_bytes(noise: bytes) -> None:
    read_wave_head(of(noise))
    read_wave_head(of(b"RIFF\0\0\0\0WAVE" + noise))
    read_wave_head(of(b"RIFF\0\0\0\0WAVEfmt " + noise))
    tag_bytes(of(b"ID3" + noise))


def test_a_tag_that_ffmpeg_does_not_skip() -> None:
    tag = b"ID3\x03\0\0\0\0\0\x05" + bytes(5)
    assert tag_bytes(of(tag + wave_bytes(bytes(10)))) == 15
    assert tag_bytes(of(tag + bytes(50))) == 0  # an MP3's own, say
    assert tag_bytes(of(wave_bytes(bytes(10)))) == 0


def test_bytes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    read_at = bytes_of(tmp_path / "a")
    assert (read_at(2, 3), read_at(9, 3), read_at(2**70, 3)) == (b"cde", b"", b"")
    assert bytes_of(tmp_path / "none")(0, 3) == b""
