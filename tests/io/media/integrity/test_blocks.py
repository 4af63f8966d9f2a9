"""GIF and TIFF as Pillow writes them, whole and cut, and bytes that are neither."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamenc.io.media.integrity.gifblocks import ends_whole
from streamenc.io.media.integrity.tiffstrips import is_decodable


def saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(file, format, **options)
    return file.getvalue()


def test_a_gif_ends_with_its_last_block() -> None:
    data = saved("GIF")
    assert ends_whole(data) and ends_whole(data.removesuffix(b";"))
    assert not any(ends_whole(data[:size]) for size in range(20, len(data) - 1))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_strips_of_a_tiff_are_there(compression: str | None) -> None:
    data = saved("TIFF", compression=compression)
    assert is_decodable(data)
    assert not is_decodable(data[: len(data) // 2])


def test_what_ffmpeg_does_not_decode() -> None:
    assert not is_decodable(saved("TIFF", compression="jpeg"))


@given(st.sampled_from([b"", b"II*\0\x08\0\0\0", b"GIF89a"]), st.binary(max_size=90))
def test_nonsense_is_no_error(head: bytes, data: bytes) -> None:
    assert ends_whole(head + data) in (True, False)
    assert is_decodable(head + data) in (True, False)
