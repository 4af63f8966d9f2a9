"""Images of any size -> the size that a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from streamenc import options
from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform

How = Literal["crop", "pad", "stretch"]
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
MAX_SIDE_PIXELS = 16_384
# A ribbon of few rows, scaled by its shorter side, would become gigapixels.
MAX_SCALED_SIDE_PIXELS = 65_535

Size = tuple[int, int]  # (height, width)


class Fit(Transform):
    """Scales images, and cuts them or adds to them, in this order.

    Scaling is Pillow's, bit for bit: its filters see further where they make an image smaller,
    and most published models were prepared with it. What is added repeats the edge.

    unit      Height and width come out as multiples of it.
    size      (height, width) that come out; None for the incoming size, where nothing is scaled.
    shortest  Scales the shorter side to this, then cuts the centre out to `size` (or to what `unit`
              and `how` say), as the published preparations of image models do; 0 for not.
    how       With a size: "crop" scales so that the image covers it and cuts what stands over;
              "pad" scales so that all of it is within, and repeats its edge around it; "stretch"
              scales each side by itself. Without one, "crop" cuts the centre to the next smaller
              multiples of `unit`, "pad" adds up to the next larger ones, "stretch" scales to the
              nearest.
    filter    "nearest", "bilinear", "bicubic", "lanczos" or "area".

    scaled    The (height, width) that images are scaled to, before any are cut, once it is open.
    remarks   What it does, in words, once it is open.

    Raises UsageError where an option is out of range.
    """

    blocking = True

    def __init__(
        self,
        unit: int = 1,
        size: Size | None = None,
        shortest: int = 0,
        how: str = "crop",
        filter: str = "bicubic",
    ) -> None:
        if unit < 1 or shortest < 0:
            raise UsageError(f"got unit={unit}, shortest={shortest}; wanted 1 or more, 0 or more")
        if size is not None:
            _check_size(size, unit, shortest)
        self.unit, self.size, self.shortest = unit, size, shortest
        self.how = options.choice("fit", how, get_args(How))
        self.filter = options.choice("filter", filter, FILTERS)

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "video" or len(info.shape) != 4 or None in info.shape[2:]:
            raise FitError(
                f"Fit takes video; got {info}: take the images of the source, kind='video'"
            )
        self._from: Size = info.shape[2] or 0, info.shape[3] or 0
        self.scaled, self._to = self._plan(self._from)
        height, width = self._to
        if max(self.scaled) > max(MAX_SCALED_SIDE_PIXELS, *self._from):
            raise FitError(
                f"images of {_text(self._from)} would be scaled to {_text(self.scaled)}, sides "
                f"of more than {MAX_SCALED_SIDE_PIXELS} pixels; cut them first, or fit by stretch"
            )
        if not height or not width:
            raise FitError(
                f"images of {_text(self._from)} are smaller than the {self.unit} pixels that the "
                "model takes; give a size, or fit them by pad"
            )
        self.remarks = (f"images of {self._described()}",)
        return replace(info, shape=(info.shape[0], None, height, width))

    def push(self, frame: Frame) -> Iterable[Frame]:
        if frame.data.shape[2:] != self._from or frame.data.dtype != np.uint8:
            raise FitError(f"got {frame!r} in a stream of images of {_text(self._from)}")
        if self._to == self._from == self.scaled:
            return (frame,)
        return (frame.with_(data=self._fitted(frame.data)),)

    def _plan(self, size: Size) -> tuple[Size, Size]:
        """The size to scale to, and the size to bring that to by cutting or adding."""
        if self.shortest:
            short = min(size)
            size = _each(size, lambda side: self.shortest * side // short)
        if self.size is None:
            to = _multiples(size, self.unit, self.how)
            return (to if self.how == "stretch" else size), to
        if self.shortest:
            return size, self.size
        if self.how == "stretch":
            return self.size, self.size
        factors = [Fraction(to, side) for to, side in zip(self.size, size, strict=True)]
        factor = max(factors) if self.how == "crop" else min(factors)
        return _each(size, lambda side: max(1, round(side * factor))), self.size

    def _fitted(self, video: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        fitted = np.empty((*video.shape[:2], *self._to), np.uint8)
        for planes, into in zip(video, fitted, strict=True):
            for plane, out in zip(planes, into, strict=True):
                out[...] = _changed(plane, self.scaled, self._to, self.filter)
        return fitted

    def _described(self) -> str:
        words = [_text(self._from)]
        if self.scaled != self._from:
            words.append(f"scaled to {_text(self.scaled)} ({self.filter})")
        for verb, sign in (("cut to", 1), ("filled up to", -1)):
            if any(sign * (a - b) > 0 for a, b in zip(self.scaled, self._to, strict=True)):
                words.append(f"{verb} {_text(self._to)}")
        return ", ".join(words if len(words) > 1 else [*words, "as they are"])


def _changed(plane: np.ndarray[Any, Any], scaled: Size, to: Size, filter: str) -> Any:
    """One colour, (height, width), scaled, then cut and filled up around the centre.

    Colours are scaled one by one, with the same result: so they lie in memory.
    """
    if plane.shape != scaled:
        image = Image.fromarray(np.ascontiguousarray(plane))
        plane = np.asarray(image.resize((scaled[1], scaled[0]), FILTERS[filter]))
    over = [side - wanted for side, wanted in zip(scaled, to, strict=True)]
    cut = [max(0, pixels) // 2 for pixels in over]
    plane = plane[cut[0] : cut[0] + to[0], cut[1] : cut[1] + to[1]]
    if min(over) < 0:
        added = [max(0, -pixels) for pixels in over]
        plane = np.pad(plane, [(n // 2, n - n // 2) for n in added], mode="edge")
    return plane


def _multiples(size: Size, unit: int, how: str) -> Size:
    if how == "crop":
        return _each(size, lambda side: side // unit * unit)
    if how == "pad":
        return _each(size, lambda side: -(-side // unit) * unit)
    return _each(size, lambda side: max(1, round(side / unit)) * unit)


def _each(size: Size, change: Any) -> Size:
    return change(size[0]), change(size[1])


def _text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _check_size(size: Size, unit: int, shortest: int) -> None:
    height, width = size
    if not (1 <= height <= MAX_SIDE_PIXELS and 1 <= width <= MAX_SIDE_PIXELS):
        raise UsageError(f"got a size of {_text(size)}; wanted 1 to {MAX_SIDE_PIXELS} pixels")
    if height % unit or width % unit:
        near = _multiples(size, unit, "stretch")
        raise UsageError(
            f"got a size of {_text(size)}; this model takes multiples of {unit}, such as "
            f"{_text(near)}"
        )
    if shortest and shortest < max(size):
        raise UsageError(f"shortest={shortest} is less than the size of {_text(size)} to cut out")
