"""Parts of instructions whose results are kept aside until their thread may hand them in.

A helper may be stopped in the midst of a part for as long as the system likes. So that nobody has
to wait for it, what it makes goes into its own memory first, and from there to where others read it
once it has said so; a part that takes too long is made again by another, and never handed in.
"""

from __future__ import annotations

import numpy as np
from numba import carray, int64

from streamenc_kernels.compiled.attention import attend, attend_bytes, may_write_first, write_ring
from streamenc_kernels.compiled.instruction import MANY_ROWS, PANEL, Field, Kind
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.planes.digits import NEAR_ROWS, tiled, tiled_span
from streamenc_kernels.compiled.products import (
    DOT_BLOCK,
    ROW_BLOCK,
    dot,
    dot_span,
    product,
    product_span,
)
from streamenc_kernels.compiled.tiles import WIDTH
from streamenc_kernels.compiled.vectormath import inlined, inner

f32 = np.float32
PRODUCT, DOT, ATTEND, TILED = (
    int(kind) for kind in (Kind.PRODUCT, Kind.DOT, Kind.ATTEND, Kind.TILED)
)
KIND, ROWS, OUT, INSIDE = Field.KIND, Field.ROWS, Field.OUT, Field.INSIDE
MAIN_ROWS = Field.MAIN_ROWS
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
Z, Z_ROW, Z_LANE = Field.Z, Field.Z_ROW, Field.Z_LANE
TAIL, TAIL_LANE = Field.TAIL, Field.TAIL_LANE
# What a part needs beside what it makes.
SUMS_BYTES = 1 << 14


@inner
def aside_bytes(o, lanes):
    """How much memory what a part makes takes."""
    kind = o[KIND]
    if kind == PRODUCT:
        most = MANY_ROWS - 1 if o[ROWS] * lanes < MANY_ROWS else ROW_BLOCK
        return 3 * min(o[ROWS] * lanes, most) * PANEL * 4
    if kind == DOT:
        return 3 * min(o[ROWS], DOT_BLOCK) * o[OUT] * 4
    if kind == ATTEND:
        return o[ROWS] * o[INSIDE] * 4
    if kind == TILED:
        return 3 * min(o[ROWS] * lanes, NEAR_ROWS) * WIDTH * 4
    return int64(0)


@inner
def may_be_aside(o):
    """Whether an instruction is one of those whose parts can be kept aside."""
    if o[KIND] == ATTEND:
        return may_write_first(o) and attend_bytes(o) <= SUMS_BYTES
    return o[KIND] == PRODUCT or o[KIND] == DOT or o[KIND] == TILED


@inner
def before_parts(o, lanes):
    """What is done for all parts before any is made aside."""
    if o[KIND] == ATTEND:
        for part in range(lanes * o[OUT]):
            for t in range(o[ROWS]):
                write_ring(o, lanes, part, t)


@inner
def _span(o, lanes, part):
    """The rows of a part of a product, and its outputs: the first one and how many, each."""
    if o[KIND] == DOT:
        row, count = dot_span(o, part)
        return row, count, int64(0), o[OUT]
    if o[KIND] == TILED:
        return tiled_span(o, lanes, part)
    row, count = product_span(o, lanes, part)
    start = part % ((o[OUT] + PANEL - 1) // PANEL) * PANEL
    return row, count, start, min(PANEL, o[OUT] - start)


@inlined
def make_aside(o, lanes, part, sums, area):
    """A part of an instruction, with all that it makes at `area`; `o` is this thread's own copy."""
    y, z, tail = o[Y], o[Z], o[TAIL]
    y_row, y_lane, z_row, z_lane, tail_lane = o[Y_ROW], o[Y_LANE], o[Z_ROW], o[Z_LANE], o[TAIL_LANE]
    if o[KIND] == ATTEND:
        lane = part // o[OUT]
        o[Y_ROW] = o[INSIDE] * 4
        o[Y] = area - lane * y_lane - (part - lane * o[OUT]) * o[INSIDE] * 4
        attend(o, lanes, part, part + 1, sums, False)
    else:
        # Rows lie one behind the other there, and have no other outputs than those of the part.
        row, count, start, wide = _span(o, lanes, part)
        size = wide * 4
        begin = area - row * size - start * 4
        o[Y_ROW], o[Z_ROW] = size, size
        o[Y_LANE], o[Z_LANE] = o[ROWS] * size, o[ROWS] * size
        o[TAIL_LANE] = size
        o[Y] = begin if y else 0
        o[Z] = begin + count * size if z else 0
        o[TAIL] = area + 2 * count * size - row // o[ROWS] * size - start * 4
        if o[KIND] == PRODUCT:
            product(o, lanes, part, part + 1, sums)
        elif o[KIND] == TILED:
            tiled(o, lanes, part, part + 1, sums)
        else:
            dot(o, lanes, part, part + 1, sums)
    o[Y], o[Z], o[TAIL] = y, z, tail
    o[Y_ROW], o[Y_LANE], o[Z_ROW], o[Z_LANE], o[TAIL_LANE] = y_row, y_lane, z_row, z_lane, tail_lane


@inner
def hand_in(o, lanes, part, area):
    """Brings what a part made at `area` to where it goes."""
    if o[KIND] == ATTEND:
        lane = part // o[OUT]
        size = o[INSIDE] * 4
        place = o[Y] + lane * o[Y_LANE] + (part - lane * o[OUT]) * size
        for t in range(o[ROWS]):
            _move(area + t * size, place + t * o[Y_ROW], o[INSIDE])
        return
    row, count, start, wide = _span(o, lanes, part)
    size, rows = wide * 4, o[ROWS]
    for i in range(count):
        lane = (row + i) // rows
        t = row + i - lane * rows
        if t >= o[MAIN_ROWS]:
            place = area + (2 * count + lane - row // rows) * size
            _move(place, o[TAIL] + lane * o[TAIL_LANE] + start * 4, wide)
            continue
        if o[Y]:
            place = o[Y] + lane * o[Y_LANE] + t * o[Y_ROW] + start * 4
            _move(area + i * size, place, wide)
        if o[Z]:
            place = o[Z] + lane * o[Z_LANE] + t * o[Z_ROW] + start * 4
            _move(area + (count + i) * size, place, wide)


@inner
def _move(source, target, count):
    x = carray(pointer(source), (count,), f32)
    y = carray(pointer(target), (count,), f32)
    for i in range(count):
        y[i] = x[i]
