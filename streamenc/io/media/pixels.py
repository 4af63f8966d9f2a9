"""Images as PyAV decodes them to RGB, with the colours that they were encoded from."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

# FFmpeg's numbers of the matrices (AVColorSpace) -> swscale's. Others count as not tagged.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT709, BT601 = 1, 5
HD_HEIGHT = 720
FULL_RANGE = 2
LIMITED_RANGE = 1
# swscale's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND. Without the last two, its tables
# and its rounding are off by up to 3 of 255, and by 1 in the mean.
EXACT = 0x2 | 0x2000 | 0x40000


class RgbPixels:
    """Decoded images -> uint8 (3, 1, height, width), R, G, B, all of one size.

    The matrix and the range are those that the stream says: BT.601, BT.709 or BT.2020, limited or
    full. Where it says nothing, it is BT.709 for images of 720 lines or more, BT.601 for smaller
    ones, and limited. Exact to half a step where the chroma is even; chroma and images of another
    size are scaled bilinearly. Images that are to be shown turned (a telephone's) are turned.
    Left as they are: the transfer curve (HDR is not tone-mapped), pixels that are not square,
    interlaced fields, and the levels of images that are only grey.

    first  The image whose size, as it is shown, all others get: `width`, `height`.
    """

    def __init__(self, first: Any) -> None:
        turned = _quarter_turns(first) % 2
        self.width, self.height = (
            (first.height, first.width) if turned else (first.width, first.height)
        )
        self._reformatter = VideoReformatter()

    def __call__(self, image: Any) -> np.ndarray[Any, Any]:
        turns = _quarter_turns(image)
        width, height = (self.height, self.width) if turns % 2 else (self.width, self.height)
        # One thread: several save 0.5 ms of 1.6 (720p), and wait long for each other under load.
        planar = self._reformatter.reformat(
            image, width, height, "gbrp", interpolation=EXACT, threads=1, **_colours(image)
        )
        data = np.empty((3, 1, height, width), np.uint8)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            data[channel, 0] = rows[:height, :width]
        return np.rot90(data, turns, axes=(2, 3)) if turns else data


def form(image: Any) -> tuple[int, int, int]:
    """What has to stay the same for images to have the same geometry."""
    return int(image.width), int(image.height), _quarter_turns(image)


def _quarter_turns(image: Any) -> int:
    """Against the clock, from 0 to 3."""
    return round(int(image.rotation) / 90) % 4


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
