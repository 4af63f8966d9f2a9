"""ImageInput: single images, compressed or not -> images of the size that a model takes."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from PIL import Image

from streamenc.coding.defaults import wanted_images
from streamenc.errors import FitError, InputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.pictures.album import DAMAGE
from streamenc.io.media.pictures.orientation import UPRIGHT, of_pillow
from streamenc.io.network.wire import Data
from streamenc.nodes.fit import MAX_SIDE_PIXELS, Fit
from streamenc.serve.inputs.dating import Dating, DatingState
from streamenc.serve.inputs.inputbase import (
    TICK,
    Array,
    Chunk,
    Input,
    check_packet,
    damaged,
    packed,
    unpacked,
)
from streamenc.spec import StreamSpec

FORMATS = ("JPEG", "PNG", "WEBP")
# Each scan of a progressive JPEG goes over all its pixels; a few bytes can be one.
START_OF_SCAN, MAX_SCANS = b"\xff\xda", 64
# On its way to a smaller size, an image may have so many times the pixels that are taken.
SCALED = 4

_Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]
Size = tuple[int, int]  # (height, width)


class FittingState(Struct, array_like=True, frozen=True):
    """Of a Fitting: the sizes of the newest image and of what comes out; None at the start."""

    size: tuple[_Side, _Side] | None
    to: tuple[_Side, _Side] | None


class Fitting:
    """Images of any size -> that of the model, or of the first one, in the multiples that it takes.

    Args:
        size: "WIDTHxHEIGHT" that is wanted; "" as the model has it.
        max_pixels: Of an image, before and after.

    Raises:
        UsageError: Where the model cannot take that size.
    """

    def __init__(self, spec: StreamSpec, size: str, max_pixels: int) -> None:
        self._wanted = wanted_images(spec, size or None, None, None)
        Fit(**self._wanted)  # refuses what it cannot do
        self._max_pixels = max_pixels
        to = self._wanted.get("size")
        if to is not None and to[0] * to[1] > max_pixels:
            raise UsageError(
                f"size {to[1]}x{to[0]} has more pixels than {max_pixels}, the most here"
            )
        self._rate = spec.input.rate
        self._fit: Fit | None = None
        self._size: Size | None = None
        self._to: Size | None = None

    def check(self, height: int, width: int) -> None:
        """Raises InputError where an image is not taken, before it is decoded."""
        if not 1 <= height * width <= self._max_pixels or max(height, width) > MAX_SIDE_PIXELS:
            raise InputError(
                f"got an image of {width} x {height}; at most {self._max_pixels} pixels are taken, "
                f"and sides of {MAX_SIDE_PIXELS}"
            )

    def push(self, images: Array) -> tuple[Array, bool]:
        """(3, images, height, width), uint8 -> the same as the model takes them, and whether they
        come in another size than those before.

        Raises InputError.
        """
        size: Size = images.shape[2:]
        changed = size != self._size
        fit, to = (self._fit, self._to) if not changed else self._planned(size)
        assert fit is not None
        (fitted,) = fit.push(Frame(images, 0, 0, 0))
        another = changed and self._size is not None
        self._fit, self._size, self._to = fit, size, to
        return fitted.data, another

    def _planned(self, size: Size) -> tuple[Fit, Size]:
        wanted = dict(self._wanted)
        if self._to is not None and "size" not in wanted:
            wanted["size"] = self._to  # all of one stream have one size
        fit = Fit(**wanted)
        shape = (3, None, *size)
        try:
            out = fit.open(StreamInfo("video", TICK, self._rate, shape, "uint8"))
        except FitError as error:
            raise InputError(str(error)) from None
        height, width = (side or 0 for side in out.shape[2:])
        scaled = fit.scaled[0] * fit.scaled[1]
        if height * width > self._max_pixels or scaled > SCALED * self._max_pixels:
            raise InputError(
                f"images of {size[1]} x {size[0]} would be scaled to {fit.scaled[1]} x "
                f"{fit.scaled[0]}, more than {self._max_pixels} pixels: send them in other "
                "proportions"
            )
        return fit, (height, width)

    def state(self) -> FittingState:
        return FittingState(self._size, self._to)

    def restore(self, state: FittingState) -> None:
        """Raises SnapshotError."""
        if (state.size is None) != (state.to is None):
            raise damaged("a size of images without another")
        fit: Fit | None = None
        if state.size is not None and state.to is not None:
            self._to = state.to
            try:
                self.check(*state.size)
                fit, to = self._planned(state.size)
            except (InputError, UsageError) as error:
                raise damaged(str(error)) from None
            if to != state.to:
                raise damaged(f"images of {state.to}")
        self._fit, self._size, self._to = fit, state.size, state.to


class ImageState(Struct, array_like=True, frozen=True):
    """Of an ImageInput."""

    dating: DatingState
    fitting: FittingState


class ImageInput(Input):
    """Formats jpeg (also PNG and WebP, by what the bytes are) and rgb.

    Colours are taken as they are stored, and images are turned as they say of themselves. Where an
    image has another size than the one before, it is brought to the size that came out so far, and
    flagged.

    Args:
        rate: Images a second, nominally.

    Raises:
        UsageError: Where the model cannot take that size.
    """

    slow = True

    def __init__(
        self, format: str, rate: Fraction, spec: StreamSpec, size: str, max_pixels: int
    ) -> None:
        self.format, self.rate = format, float(rate)
        self._fitting = Fitting(spec, size, max_pixels)
        self._dating = Dating(rate)

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._dating.next_pts

    def check(self, data: Data) -> None:
        if self.format == "rgb":
            check_packet(data, "uint8 (3, images, height, width)", ("uint8",), 4)
            colours, images, height, width = data.data.shape
            if colours != 3 or not images:
                raise InputError(
                    f"got uint8 {data.data.shape}; wanted (3, images, height, width), one or more"
                )
            self._fitting.check(height, width)
        else:
            check_packet(data, "uint8 (1, bytes) of an image", ("uint8",), 2)
            if data.data.shape[0] != 1 or not data.data.size:
                raise InputError(f"got uint8 {data.data.shape}; wanted (1, bytes) of an image")
            with self._opened(data.data.tobytes()):
                pass

    def push(self, data: Data) -> list[Chunk]:
        self.check(data)
        images = data.data if self.format == "rgb" else self._decoded(data.data.tobytes())
        fitted, changed = self._fitting.push(images)
        items = fitted.shape[1]
        pts, duration, flagged = self._dating.place(data, items)
        flagged = flagged or changed
        return [Chunk(fitted[None], items, pts, duration, flagged, 1.0, data.arrived_unix_ns)]

    def flush(self) -> list[Chunk]:
        self._dating.end()
        return []

    def state(self) -> bytes | None:
        return packed(ImageState(self._dating.state(), self._fitting.state()))

    def restore(self, blob: bytes) -> None:
        state = unpacked(blob, ImageState)
        self._fitting.restore(state.fitting)
        self._dating.restore(state.dating)

    def _opened(self, payload: bytes) -> Image.Image:
        """Not decoded yet, but of a size that is taken. Raises InputError."""
        if payload[:2] == b"\xff\xd8" and payload.count(START_OF_SCAN) > MAX_SCANS:
            raise InputError(f"got a JPEG of more than {MAX_SCANS} scans, which nobody needs")
        try:
            picture = Image.open(BytesIO(payload), formats=FORMATS)
        except DAMAGE as error:
            raise InputError(
                f"got {len(payload)} bytes that are no image in {', '.join(FORMATS)}: {error}"
            ) from None
        width, height = picture.size
        self._fitting.check(height, width)
        return picture

    def _decoded(self, payload: bytes) -> Array:
        """(3, 1, height, width). Raises InputError."""
        with self._opened(payload) as picture:
            try:
                pixels = np.asarray(picture.convert("RGB"))
            except DAMAGE as error:
                raise InputError(
                    f"got a damaged image of {len(payload)} bytes in {picture.format}: {error}"
                ) from None
            orientation = of_pillow(picture) or UPRIGHT
        shown = orientation.shown(np.moveaxis(pixels, 2, 0))
        return np.ascontiguousarray(shown[:, None])
