"""Orientation: the eight as Pillow has them, and what matrices and damaged headers mean."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from streamenc.io.media.pictures.orientation import UPRIGHT, Orientation, of_picture_file

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize("number", range(1, 9))
def test_numbers_mean_what_pillow_shows(number: int) -> None:
    picture = Image.fromarray(PIXELS)
    picture.getexif()[0x112] = number
    orientation = Orientation.numbered(number)
    wanted = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(orientation.shown(PIXELS), wanted)
    assert orientation.swaps == (wanted.shape != PIXELS.shape)


@pytest.mark.parametrize("number", [0, 9, -1, 65_535])
def test_other_numbers_are_upright(number: int) -> None:
    assert Orientation.numbered(number) == UPRIGHT


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("scale", [1, 65_536, 0x60_0000])
def test_matrices(number: int, scale: int) -> None:
    orientation = Orientation.numbered(number)
    # Where the pixels right of and below the first one go.
    marks = np.zeros((3, 3), int)
    marks[1, 1], marks[1, 2], marks[2, 1] = 1, 2, 3
    shown = orientation.shown(marks)
    (a, b), (c, d) = (np.argwhere(shown == n)[0][::-1] - 1 for n in (2, 3))
    matrix = struct.pack("=9i", *(scale * int(n) for n in (a, b, 0, c, d, 0, 0, 0, 1)))
    assert Orientation.of_matrix(matrix) == (orientation, True)


def test_a_matrix_that_is_none_of_the_eight() -> None:
    tilted = struct.pack("=9i", 60_000, 26_000, 0, -26_000, 60_000, 0, 0, 0, 1 << 30)
    assert Orientation.of_matrix(tilted) == (UPRIGHT, False)
    assert Orientation.of_matrix(bytes(36)) == (UPRIGHT, True)


def test_angles() -> None:
    turns = [Orientation.of_angle(degrees).turns for degrees in (0, 90, 180, -180, -90, 359)]
    assert turns == [0, 1, 2, 2, 3, 0]


def test_headers_that_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    assert of_picture_file(path) == UPRIGHT
    Image.fromarray(PIXELS).save(path, exif=Image.Exif())
    raw = path.read_bytes().replace(b"IEND", b"eXIf")
    path.write_bytes(raw[:40])
    assert of_picture_file(path) == UPRIGHT
    path.write_bytes(raw)
    assert of_picture_file(path) in (None, UPRIGHT)
    path.write_bytes(b"II*\0" + b"\xff" * 40)
    assert of_picture_file(path) is None
    assert of_picture_file(tmp_path / "none.jpg") is None
