"""CodeInput, FeatureInput, TextInput: what decoders, and models of texts, take."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction

import numpy as np
from msgspec import Struct

from streamenc.errors import InputError
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.dating import Dating, DatingState
from streamenc.serve.inputs.inputbase import (
    Array,
    Chunk,
    Input,
    check_packet,
    damaged,
    packed,
    unpacked,
)
from streamenc.spec import StreamSpec

# A place of a grid becomes at least so many pixels.
PIXELS_PER_PLACE = 256
CODES, FEATURES = ("uint8", "uint16", "uint32"), ("float32", "float16")
MAX_TEXT_BYTES = 64 * 2**10


class PlainState(Struct, array_like=True, frozen=True):
    """Of what is passed on as it comes: times, and the grid of what came, () for none."""

    dating: DatingState
    grid: tuple[int, ...]


class PlainInput(Input):
    """What is passed on as it comes, once it was looked at."""

    def __init__(self, format: str, rate: Fraction) -> None:
        self.format, self.rate = format, float(rate)
        self._dating = Dating(rate)
        self._grid: tuple[int, ...] = ()

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._dating.next_pts

    @abstractmethod
    def _taken(self, data: Data) -> Array | list[str]:
        """As the model takes it. Raises InputError, and changes nothing."""

    def check(self, data: Data) -> None:
        self._taken(data)

    def push(self, data: Data) -> list[Chunk]:
        taken = self._taken(data)
        items, grid = 1, self._grid
        if not isinstance(taken, list):
            items, self._grid = taken.shape[2], taken.shape[3:]
        changed = self._dating.begun and self._grid != grid
        pts, duration, flagged = self._dating.place(data, items)
        flagged = flagged or changed
        arrived_ns = data.arrived_unix_ns
        return [Chunk(taken, items, pts, duration, flagged, data.scale, arrived_ns)]

    def flush(self) -> list[Chunk]:
        self._dating.end()
        return []

    def state(self) -> bytes | None:
        return packed(PlainState(self._dating.state(), self._grid))

    def restore(self, blob: bytes) -> None:
        state = unpacked(blob, PlainState)
        self._check_grid(state.grid)
        self._dating.restore(state.dating)
        self._grid = state.grid

    def _check_grid(self, grid: tuple[int, ...]) -> None:
        """Raises SnapshotError."""
        if grid:
            raise damaged(f"a grid of {grid}")


class LatentInput(PlainInput):
    """Formats codes and features: (channels, frames), or (channels, frames, rows, columns).

    A grid of another size begins a new stream.

    Args:
        codebooks: How many come; None for all that the model has.
        max_pixels: Of the images that are decoded.
    """

    def __init__(
        self, format: str, spec: StreamSpec, codebooks: int | None, max_pixels: int
    ) -> None:
        port = spec.input
        super().__init__(format, port.rate)
        self._channels = port.channels
        if codebooks is not None and format == "codes":
            self._channels = spec.check_codebooks(codebooks)
        self._axes, self._dtype = port.axes, port.dtype if format == "codes" else "float32"
        self._entries, self._scaled = spec.codebook_size, spec.scaled
        self._most_places = max(1, max_pixels // PIXELS_PER_PLACE)
        names = "codebooks" if format == "codes" else "bins"
        self._shape = f"({names}, frames{', rows, columns' if port.axes else ''})"

    def _taken(self, data: Data) -> Array:
        got = data.data
        dtypes = CODES if self.format == "codes" else FEATURES
        check_packet(data, f"{self.format} {self._shape}", dtypes, 2 + self._axes)
        if got.shape[0] != self._channels or not got.size:
            raise InputError(
                f"got {self.format} {got.shape}; wanted {self._shape}: {self._channels} of "
                "them, and one frame or more"
            )
        self._check_places(got.shape[2:])
        if self.format == "codes" and got.max() >= self._entries:
            raise InputError(f"got code {got.max()}; the books have {self._entries} entries")
        if self.format == "features" and not np.isfinite(got).all():
            raise InputError("got features that are not finite")
        if data.scale != 1 and not self._scaled:
            raise InputError(f"got scale {data.scale}; codes of this model have none")
        return got[None].astype(self._dtype)

    def _check_places(self, grid: tuple[int, ...]) -> None:
        if not grid:
            return
        if grid[0] * grid[1] > self._most_places:
            raise InputError(
                f"got a grid of {grid[0]} x {grid[1]}; at most {self._most_places} places are taken"
            )

    def _check_grid(self, grid: tuple[int, ...]) -> None:
        if len(grid) not in (0, self._axes) or any(side < 1 for side in grid):
            raise damaged(f"a grid of {grid}")
        if grid and grid[0] * grid[1] > self._most_places:
            raise damaged(f"a grid of {grid}")


class TextInput(PlainInput):
    """Format text: one text a packet, in UTF-8."""

    def __init__(self) -> None:
        super().__init__("text", Fraction(0))

    def _taken(self, data: Data) -> list[str]:
        check_packet(data, "uint8 (1, bytes) of UTF-8", ("uint8",), 2)
        got = data.data
        if got.shape[0] != 1 or not 1 <= got.size <= MAX_TEXT_BYTES:
            raise InputError(
                f"got uint8 {got.shape}; wanted (1, bytes) of UTF-8, 1 to {MAX_TEXT_BYTES}"
            )
        try:
            return [got.tobytes().decode()]
        except UnicodeDecodeError as error:
            raise InputError(f"got text that is no UTF-8: {error.reason}") from None
