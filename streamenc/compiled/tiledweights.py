"""Weights as matrix units read them: digits of whole numbers, tile by tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamenc_kernels.compiled.planes.shapes import TILE_ROWS, TILE_WIDE, WEIGHT_DIGITS

Array = NDArray[Any]
TOGETHER = 4  # of a row of a tile, these lie side by side


class Tiles(NamedTuple):
    """A matrix as `tiled` takes it.

    numbers  (parts, steps, WEIGHT_DIGITS, TILE_WIDE // 4, TILE_ROWS, 4) int8.
    scale    (outputs,) float32.
    """

    numbers: Array
    scale: Array

    @property
    def steps(self) -> int:
        return int(self.numbers.shape[1])


def tile_shape(outputs: int, inside: int) -> tuple[int, ...]:
    """Of the numbers of a matrix (outputs, inside)."""
    parts, steps = -(-outputs // TILE_ROWS), -(-inside // TILE_WIDE)
    return parts, steps, WEIGHT_DIGITS, TILE_WIDE // TOGETHER, TILE_ROWS, TOGETHER


def write_tiles(whole: Array, tiles: Array) -> None:
    """Whole numbers (outputs, inside), as far as int16 goes, to `tiles` of their `tile_shape`."""
    for part in range(len(tiles)):
        rows = whole[part * TILE_ROWS : (part + 1) * TILE_ROWS].astype(np.int32)
        padded = np.zeros((TILE_ROWS, tiles.shape[1] * TILE_WIDE), np.int32)
        padded[: len(rows), : rows.shape[1]] = rows
        low = ((padded + 128) & 255) - 128
        for digit, numbers in enumerate(((padded - low) >> 8, low)):
            tiled = numbers.reshape(TILE_ROWS, tiles.shape[1], -1, TOGETHER)
            tiles[part, :, digit] = tiled.transpose(1, 2, 0, 3)
