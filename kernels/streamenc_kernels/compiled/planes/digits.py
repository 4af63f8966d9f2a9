"""Rows as digits, and products of these: float32 inputs and int16 weights in whole numbers."""

from __future__ import annotations

import numpy as np
from numba import carray, int64

from streamenc_kernels.compiled.instruction import Field
from streamenc_kernels.compiled.intrinsics import float_of_bits, pointer
from streamenc_kernels.compiled.planes.shapes import (
    DIGITS,
    ORDERS,
    TILE_BYTES,
    TILE_ROWS,
    TILE_WIDE,
    WEIGHT_DIGITS,
)
from streamenc_kernels.compiled.planes.units import (
    configure,
    joined,
    largest_bits,
    layout,
    multiply,
    release,
    write_digits,
)
from streamenc_kernels.compiled.products import finish_odd, finish_vector
from streamenc_kernels.compiled.tiles import WIDTH
from streamenc_kernels.compiled.vectormath import inner

f32 = np.float32
ROWS, OUT, INSIDE, PANELS = Field.ROWS, Field.OUT, Field.INSIDE, Field.PANELS
X, X_ROW, X_LANE = Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
A = Field.A
# The largest number of three digits of which the first is 127.
LARGEST = f32(127 * 65536)
# Of the orders of magnitude that count the last one is 256 times what a weight and an input say.
LAST_ORDER = f32(256)
# Bits of infinity; and what is too small to divide LARGEST by.
INFINITE, SMALLEST = 0x7F800000, f32(1e-30)
# So many rows stay near the core while all weights pass.
NEAR_ROWS = 128
LAYOUTS = np.stack([layout(rows) for rows in range(TILE_ROWS + 1)])


@inner
def split_bytes(o):
    """What `split` needs for itself."""
    return (o[INSIDE] + TILE_WIDE - 1) // TILE_WIDE * TILE_WIDE * 4


@inner
def split(o, lanes, first, last, scratch):
    """Parts are rows of lanes: INSIDE numbers become whole ones of three digits, int8, with a
    factor for each row. y (digits, INSIDE up to a multiple of TILE_WIDE), and the factor.

    What is not finite makes the factor NaN.
    """
    inside, rows = o[INSIDE], o[ROWS]
    wide = (inside + TILE_WIDE - 1) // TILE_WIDE * TILE_WIDE
    for part in range(first, last):
        lane = part // rows
        t = part - lane * rows
        x = o[X] + lane * o[X_LANE] + t * o[X_ROW]
        y = o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]
        if inside < wide:  # zeros make it whole tiles
            padded = carray(pointer(scratch), (wide,), f32)
            given = carray(pointer(x), (inside,), f32)
            for i in range(inside):
                padded[i] = given[i]
            for i in range(inside, wide):
                padded[i] = f32(0)
            x = scratch
        bits = largest_bits(x, wide // WIDTH)
        most = float_of_bits(bits)
        factor = carray(pointer(y + DIGITS * wide), (1,), f32)
        if bits >= INFINITE:
            factor[0] = f32(np.nan)
            continue
        factor[0] = most / LARGEST * LAST_ORDER
        turn = LARGEST / most if most > SMALLEST else f32(0)
        write_digits(x, wide // WIDTH, turn, y, wide)


@inner
def tiled_parts(o, lanes):
    """Into how many parts a product may be cut: blocks of rows by WIDTH outputs each."""
    blocks = (o[ROWS] * lanes + NEAR_ROWS - 1) // NEAR_ROWS
    return blocks * ((o[OUT] + WIDTH - 1) // WIDTH)


@inner
def tiled_span(o, lanes, part):
    """The rows of a part and its outputs: the first one and how many, each."""
    tiles = (o[OUT] + WIDTH - 1) // WIDTH
    row = part // tiles * NEAR_ROWS
    start = part % tiles * WIDTH
    return row, min(NEAR_ROWS, o[ROWS] * lanes - row), start, min(WIDTH, o[OUT] - start)


@inner
def _tile(o, row, rows, start, sums, y):
    wide = (o[INSIDE] + TILE_WIDE - 1) // TILE_WIDE * TILE_WIDE
    x, stride = o[X] + row * o[X_ROW], o[X_ROW]
    weights = o[PANELS] + start // WIDTH * o[A] * (WEIGHT_DIGITS * TILE_BYTES)
    multiply(x, stride, wide, weights, wide // TILE_WIDE, sums)
    joined(sums, x + DIGITS * wide, stride, rows, y)
    if o[OUT] - start >= WIDTH:
        finish_vector(o, y, WIDTH * 4, row, rows, start)
    else:
        finish_odd(o, y, WIDTH * 4, row, rows, start)


@inner
def tiled(o, lanes, first, last, scratch):
    """A product of rows that `split` left, all lanes' one behind the other. PANELS is the address
    of the weights, (tiles of WIDTH outputs, A, ...) as `multiply` takes them, A the steps of the
    weights, of which INSIDE may need fewer."""
    sums, y = scratch, scratch + ORDERS * TILE_BYTES
    shaped = int64(0)
    for part in range(first, last):
        begin, count, start, _ = tiled_span(o, lanes, part)
        for row in range(begin, begin + count, TILE_ROWS):
            rows = min(TILE_ROWS, begin + count - row)
            if rows != shaped:
                configure(LAYOUTS[rows].ctypes.data)
                shaped = rows
            _tile(o, row, rows, start, sums, y)
    release()
