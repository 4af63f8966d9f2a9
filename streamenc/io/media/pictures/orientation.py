"""Orientation: which way up an image is to be shown, one of eight."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import ExifTags, Image

# (mirrored, quarter turns) by the number that EXIF, TIFF and XMP give it, from 1.
_NUMBERED = (
    (False, 0), (True, 0), (False, 2), (True, 2), (True, 1), (False, 3), (True, 3), (False, 1)
)  # fmt: skip
# Files whose headers are read here.
_PNG = b"\x89PNG\r\n\x1a\n"
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
# What Pillow raises on damaged headers; warnings are raised where the user wants them so.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError,
    struct.error, Image.DecompressionBombError, Warning,
)  # fmt: skip
# By which a matrix may differ from the nearest of the eight.
_MAX_SKEW = 0.01
_SKEWED = "images are to be shown turned by no quarter turns; they were turned to the nearest"
_ANGLE_ONLY = (
    "how images are to be shown is known only as an angle here, and mirrored ones come out turned; "
    "save the file first, and name that"
)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored image becomes the one that is shown: mirrored left to right, then turned.

    turns  Quarter turns against the clock, 0 to 3.
    """

    mirrored: bool = False
    turns: int = 0

    @classmethod
    def numbered(cls, number: int) -> Self:
        """By EXIF's number, 1 to 8. Any other counts as 1, as viewers take it."""
        return cls(*_NUMBERED[number - 1 if 1 <= number <= 8 else 0])

    @classmethod
    def of_angle(cls, degrees: float) -> Self:
        """Turned against the clock, by the nearest quarter."""
        return cls(False, round(degrees / 90) % 4)

    @classmethod
    def of_matrix(cls, matrix: bytes) -> tuple[Self, bool]:
        """By FFmpeg's display matrix: nine 32-bit numbers, of which the first, second, fourth and
        fifth turn and mirror. Also whether it is one of the eight, not merely near to it."""
        a, b, _, c, d = struct.unpack("=5i", matrix[:20])
        mirrored = a * d - b * c < 0
        if mirrored:
            a, b = -a, -b
        # Against the clock, where y points down: the mean of where both axes go.
        degrees = math.degrees(math.atan2(c - b, a + d))
        size = math.hypot(c - b, a + d) / 2
        nearest = round(degrees / 90) % 4
        exact = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)][nearest]
        off = max(abs(n - size * e) for n, e in zip((a, b, c, d), exact, strict=True))
        return cls(mirrored, nearest), off <= _MAX_SKEW * size

    @property
    def swaps(self) -> bool:
        """Whether width and height change places."""
        return self.turns % 2 == 1

    def shown(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(..., height, width), as it is to be shown: a view where it is not turned."""
        if self.mirrored:
            image = image[..., ::-1]
        return np.rot90(image, self.turns, axes=(-2, -1)) if self.turns else image


UPRIGHT = Orientation()


def of_picture_file(path: Path) -> Orientation | None:
    """As `of_picture_data`; None also where it cannot be read."""
    try:
        with path.open("rb") as file:
            return of_picture_data(file)
    except OSError:
        return None


def of_picture_data(file: BinaryIO) -> Orientation | None:
    """What a file of a picture says of itself, in EXIF, TIFF or XMP, as Pillow reads it; None where
    Pillow cannot read that."""
    try:
        if _is_png_without_tags(file):
            return UPRIGHT
        with Image.open(file, formats=_FORMATS) as picture:
            return of_pillow(picture)
    except _DAMAGE:
        return None


def of_pillow(picture: Image.Image) -> Orientation | None:
    """What a picture that Pillow opened says of itself; None where that is damaged."""
    try:
        number = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return None
    return Orientation.numbered(number) if isinstance(number, int) else UPRIGHT


def _is_png_without_tags(file: BinaryIO) -> bool:
    """Pillow would decode it as a whole, to look for tags behind its pixels."""
    if file.read(len(_PNG)) != _PNG:
        file.seek(0)
        return False
    rest = file.read()
    file.seek(0)
    return b"eXIf" not in rest and b"XML:com.adobe.xmp" not in rest and b"Raw profile" not in rest


def of_frame(image: Any) -> tuple[Orientation, str]:
    """What an image that PyAV decoded says of itself, and in words why that is not sure."""
    try:
        matrix = image.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for another part of what comes with the image
        return Orientation.of_angle(image.rotation), _ANGLE_ONLY if image.rotation else ""
    if matrix is None:
        return UPRIGHT, ""
    orientation, exact = Orientation.of_matrix(bytes(matrix))
    return orientation, "" if exact else _SKEWED
