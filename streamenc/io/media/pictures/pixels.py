"""Images as PyAV decodes them to RGB, with the colours that they were encoded from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from streamenc.io.media.pictures.orientation import UPRIGHT, Orientation

# FFmpeg's numbers of the matrices (AVColorSpace) -> swscale's. Others count as not tagged.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT709, BT601 = 1, 5
HD_HEIGHT = 720
FULL_RANGE = 2
LIMITED_RANGE = 1
# swscale's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND. Without the last two, its tables
# and its rounding are off by up to 3 of 255, and by 1 in the mean.
EXACT = 0x2 | 0x2000 | 0x40000
# Pixels that are less oblong than this are a rounding of the encoder's, and count as square.
LEAST_OBLONG = Fraction(1, 100)
# Grey of limited range: swscale takes all grey for full.
_EXPANDED = np.clip(np.round((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Form:
    """How an image is stored, and to be shown.

    pixel_aspect  How wide a pixel is, by its height.
    """

    width: int
    height: int
    orientation: Orientation = UPRIGHT
    pixel_aspect: Fraction = Fraction(1)

    @property
    def square(self) -> tuple[int, int]:
        """Its width and height in square pixels, before it is turned."""
        if abs(self.pixel_aspect - 1) < LEAST_OBLONG:
            return self.width, self.height
        return max(1, round(self.width * self.pixel_aspect)), self.height

    @property
    def shown(self) -> tuple[int, int]:
        """Its width and height as it is shown."""
        return self.square[::-1] if self.orientation.swaps else self.square


class RgbPixels:
    """Decoded images -> uint8 (3, 1, height, width), R, G, B, all of one size.

    The matrix and the range are those that the stream says: BT.601, BT.709 or BT.2020, limited or
    full. Where it says nothing, it is BT.709 for images of 720 lines or more, BT.601 for smaller
    ones, and limited; grey alone is full. Exact to half a step where the chroma is even; chroma,
    oblong pixels and images of another size are scaled bilinearly. Images are turned and mirrored
    as their form says. An image that is shown in other proportions than the first one is brought
    within its size, and black beside it. Colours are taken as they are stored, also of transparent
    pixels. Left as they are: the transfer curve (HDR is not tone-mapped) and interlaced fields.

    first        The form of the image whose size, as it is shown, all others get: `width`,
                 `height`.
    transparent  Whether an image had pixels that are not opaque, so far.
    """

    def __init__(self, first: Form) -> None:
        self.width, self.height = first.shown
        self.transparent = False
        self._reformatter = VideoReformatter()

    def __call__(self, image: Any, form: Form) -> np.ndarray[Any, Any]:
        width, height = self.within(form)
        stored = (height, width) if form.orientation.swaps else (width, height)
        shown = form.orientation.shown(self._rgb(image, *stored))
        if (width, height) == (self.width, self.height):
            return shown
        data = np.zeros((3, 1, self.height, self.width), np.uint8)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        data[:, :, top : top + height, left : left + width] = shown
        return data

    def within(self, form: Form) -> tuple[int, int]:
        """The width and height at which an image of that form is shown here."""
        width, height = form.shown
        if (width, height) == (self.width, self.height):
            return width, height
        factor = min(Fraction(self.width, width), Fraction(self.height, height))
        scaled = max(1, round(width * factor)), max(1, round(height * factor))
        # By a pixel or so, sizes of the same proportions differ where they are rounded to even.
        near = abs(scaled[0] - self.width) <= 2 and abs(scaled[1] - self.height) <= 2
        return (self.width, self.height) if near else scaled

    def _rgb(self, image: Any, width: int, height: int) -> np.ndarray[Any, Any]:
        seen_through = not self.transparent and _has_alpha(image)
        # One thread: several save 0.5 ms of 1.6 (720p), and wait long for each other under load.
        planar = self._reformatter.reformat(
            image,
            width,
            height,
            "gbrap" if seen_through else "gbrp",
            interpolation=EXACT,
            threads=1,
            **_colours(image),
        )
        data = np.empty((3, 1, height, width), np.uint8)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=False):
            data[channel, 0] = _rows(plane)[:height, :width]
        if seen_through:
            self.transparent = bool(_rows(planar.planes[3])[:height, :width].min() < 255)
        if _is_grey(image) and image.color_range == LIMITED_RANGE:
            return _EXPANDED[data]
        return data


def _rows(plane: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


def _has_alpha(image: Any) -> bool:
    format = image.format
    return format.has_palette or len(format.components) in (2, 4)


def _is_grey(image: Any) -> bool:
    format = image.format
    return len(format.components) <= 2 and not (format.is_rgb or format.has_palette)


def _colours(image: Any) -> dict[str, int]:
    if image.format.is_rgb or image.format.has_palette:
        return {}
    untagged = BT709 if image.height >= HD_HEIGHT else BT601
    # The formats called yuvj... are full range by their name.
    full = image.color_range == FULL_RANGE or image.format.name.startswith("yuvj")
    return {
        "src_colorspace": MATRICES.get(int(image.colorspace), untagged),
        "src_color_range": FULL_RANGE if full else LIMITED_RANGE,
        "dst_color_range": FULL_RANGE,
    }
