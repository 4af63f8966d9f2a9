"""How numbers lie as digits and tiles; no numba."""

from __future__ import annotations

# Of a tile: rows, and bytes of each of them.
TILE_ROWS, TILE_WIDE = 16, 64
TILE_BYTES = TILE_ROWS * TILE_WIDE
# Numbers become three digits to the base of 256, weights two; of their products these orders of
# magnitude count.
DIGITS, ORDERS, WEIGHT_DIGITS = 3, 3, 2
# Behind the digits of a row: what brings its products back.
FACTOR_BYTES = 64


def row_bytes(inside: int) -> int:
    """Of so many numbers as digits, with the factor."""
    return DIGITS * (-(-inside // TILE_WIDE) * TILE_WIDE) + FACTOR_BYTES
