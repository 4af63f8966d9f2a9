"""Products of rows with panels of weights, and all that is done to each output while it is there.

A causal convolution on channels-last rows is such a product as well: its windows are rows that
overlap, `stride * channels` apart and `kernel * channels` long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, int64
from numba.core.registry import cpu_target

from streamenc_kernels.compiled.instruction import MANY_ROWS, PANEL, Activation, Field, WeightType
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.tiles import WIDTH, make_row_end, make_tile
from streamenc_kernels.compiled.vectormath import elu, gelu, gelu_tanh, inner, silu

f32 = np.float32
ROWS, OUT, INSIDE, PANELS = Field.ROWS, Field.OUT, Field.INSIDE, Field.PANELS
SCALE, BIAS, ACTIVATION = Field.SCALE, Field.BIAS, Field.ACTIVATION
X, X_ROW, X_LANE, GATHERED = Field.X, Field.X_ROW, Field.X_LANE, Field.GATHERED
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
Z, Z_ROW, Z_LANE = Field.Z, Field.Z_ROW, Field.Z_LANE
RESIDUAL, RESIDUAL_ROW, RESIDUAL_LANE, RESIDUAL_ROWS = (
    Field.RESIDUAL, Field.RESIDUAL_ROW, Field.RESIDUAL_LANE, Field.RESIDUAL_ROWS,
)  # fmt: skip
TAIL, TAIL_LANE, MAIN_ROWS = Field.TAIL, Field.TAIL_LANE, Field.MAIN_ROWS
ELU, GELU, GELU_TANH, SILU = (
    int(Activation.ELU), int(Activation.GELU), int(Activation.GELU_TANH), int(Activation.SILU),
)  # fmt: skip
HALF = PANEL // 2
# How many vectors of outputs a tile has by its rows, so that its sums fit into the registers: of
# AVX-512 there are 32 as wide as a vector; others are narrower, or fewer.
WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
SHAPE = {1: 4, 2: 4, 3: 4, 4: 4, 6: 4} if WIDE else {1: 2, 2: 2, 3: 1, 4: 1, 6: 1}
ROW_BLOCK, DOT_BLOCK = 48, 480  # rows whose inputs stay near the core while all panels pass


@inner
def finish_odd(o, sums, stride, row, rows, start):
    """`finish` for less than a vector of outputs, where the sums of a row lie `stride` bytes behind
    those of the row before."""
    per_lane, main = o[ROWS], o[MAIN_ROWS]
    count = min(WIDTH, o[OUT] - start)
    at = start * 4
    for i in range(rows):
        lane = (row + i) // per_lane
        t = row + i - lane * per_lane
        r = carray(pointer(sums + i * stride), (count,), f32)
        if o[SCALE]:
            s = carray(pointer(o[SCALE] + at), (count,), f32)
            for q in range(count):
                r[q] *= s[q]
        if t >= main:
            y = carray(pointer(o[TAIL] + lane * o[TAIL_LANE] + at), (count,), f32)
            for q in range(count):
                y[q] = r[q]
            continue
        if o[BIAS]:
            s = carray(pointer(o[BIAS] + at), (count,), f32)
            for q in range(count):
                r[q] += s[q]
        if t < o[RESIDUAL_ROWS]:
            place = o[RESIDUAL] + lane * o[RESIDUAL_LANE] + t * o[RESIDUAL_ROW] + at
            s = carray(pointer(place), (count,), f32)
            for q in range(count):
                r[q] += s[q]
        if o[Y]:
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW] + at), (count,), f32)
            for q in range(count):
                y[q] = r[q]
        if o[Z]:
            z = carray(pointer(o[Z] + lane * o[Z_LANE] + t * o[Z_ROW] + at), (count,), f32)
            activate(r, z, count, o[ACTIVATION])


def _make_finish(vectors: int) -> Callable[..., None]:
    row_end = make_row_end(vectors)
    wide = vectors * WIDTH

    @inner
    def finish_whole(o, sums, stride, row, rows, start):
        per_lane, main = o[ROWS], o[MAIN_ROWS]
        at = start * 4
        scale = o[SCALE] + at if o[SCALE] else 0
        bias = o[BIAS] + at if o[BIAS] else 0
        for i in range(rows):
            lane = (row + i) // per_lane
            t = row + i - lane * per_lane
            here = sums + i * stride
            if t >= main:
                row_end(here, scale, 0, 0, o[TAIL] + lane * o[TAIL_LANE] + at, 0, 0)
                continue
            residual = 0
            if t < o[RESIDUAL_ROWS]:
                residual = o[RESIDUAL] + lane * o[RESIDUAL_LANE] + t * o[RESIDUAL_ROW] + at
            y = o[Y] + lane * o[Y_LANE] + t * o[Y_ROW] + at if o[Y] else 0
            z = o[Z] + lane * o[Z_LANE] + t * o[Z_ROW] + at if o[Z] else 0
            row_end(here, scale, bias, residual, y, z, o[ACTIVATION])

    if vectors == 1:
        return finish_whole

    @inner
    def finish(o, sums, row, rows, start):
        """Brings the sums of `rows` rows by `wide` outputs, from output `start` on, to where they
        go: y = sums * scale + bias + residual, z = activation(y).

        How an output is computed is told by its place alone, and not by the tile that it is in.
        """
        if o[OUT] - start >= wide:
            finish_whole(o, sums, wide * 4, row, rows, start)
            return
        for part in range(vectors):
            begin, here = start + part * WIDTH, sums + part * WIDTH * 4
            if o[OUT] - begin >= WIDTH:
                finish_vector(o, here, wide * 4, row, rows, begin)
            elif o[OUT] > begin:
                finish_odd(o, here, wide * 4, row, rows, begin)

    return finish


@inner
def activate(x, y, count, activation):
    if activation == ELU:
        for q in range(count):
            y[q] = elu(x[q])
    elif activation == GELU:
        for q in range(count):
            y[q] = gelu(x[q])
    elif activation == GELU_TANH:
        for q in range(count):
            y[q] = gelu_tanh(x[q])
    elif activation == SILU:
        for q in range(count):
            y[q] = silu(x[q])
    else:
        for q in range(count):
            y[q] = x[q]


finish_vector = _make_finish(1)


@inner
def finish_vector_rows(o, sums, row, rows, start):
    """`finish` where a tile is a vector wide."""
    if o[OUT] - start >= WIDTH:
        finish_vector(o, sums, WIDTH * 4, row, rows, start)
    elif o[OUT] > start:
        finish_odd(o, sums, WIDTH * 4, row, rows, start)


# By the vectors of a tile.
FINISH = {n: finish_vector_rows if n == 1 else _make_finish(n) for n in {2, *SHAPE.values()}}


def _make_panel(kind: WeightType) -> Callable[..., Any]:
    """Rows by a panel, in tiles of six rows and of what is left."""
    one, two, three, four, six = (make_tile(n, SHAPE[n], kind) for n in (1, 2, 3, 4, 6))
    twelve = make_tile(12, 2, kind) if WIDE else None
    size = 2 if kind is WeightType.INT16 else 4
    short = kind is WeightType.INT16
    few, many = SHAPE[1], SHAPE[6]
    few_wide, many_wide = few * WIDTH, many * WIDTH
    finish_few, finish_many, finish_half = FINISH[few], FINISH[many], FINISH[2]

    @inner
    def panel(o, x, stride, row, count, weights, start, sums):
        # A number of numba's own type: a literal would make it compile another `finish`.
        inside, twelve_rows = o[INSIDE], np.int64(12)
        m = 0
        # Twelve rows by half a panel: where there is no other half, and where what it takes to make
        # floats of weights is more than what it takes to spread inputs.
        while WIDE and m + 12 <= count and (short or o[OUT] - start <= HALF):
            here = x + m * stride
            twelve(here, stride, weights, inside, sums)
            finish_half(o, sums, row + m, twelve_rows, start)
            if o[OUT] - start > HALF:
                twelve(here, stride, weights + HALF * size, inside, sums)
                finish_half(o, sums, row + m, twelve_rows, start + HALF)
            m += 12
        while m < count:
            left = count - m
            here = x + m * stride
            done = 6 if left >= 6 and left != 8 else min(left, 4)
            if done <= 2:
                for part in range(PANEL // few_wide):
                    w = weights + part * few_wide * size
                    if done == 2:
                        two(here, stride, w, inside, sums)
                    else:
                        one(here, stride, w, inside, sums)
                    finish_few(o, sums, row + m, done, start + part * few_wide)
            else:
                for part in range(PANEL // many_wide):
                    w = weights + part * many_wide * size
                    if done == 6:
                        six(here, stride, w, inside, sums)
                    elif done == 4:
                        four(here, stride, w, inside, sums)
                    else:
                        three(here, stride, w, inside, sums)
                    finish_many(o, sums, row + m, done, start + part * many_wide)
            m += done

    return panel


_panel_float, _panel_short = _make_panel(WeightType.FLOAT32), _make_panel(WeightType.INT16)
INT16 = int(WeightType.INT16)


@inner
def product_parts(o, lanes):
    """Into how many parts a product may be cut: blocks of rows, panel by panel."""
    return _blocks(o, lanes) * _panels(o)


@inner
def product_span(o, lanes, part):
    """The rows of a part, counted through all lanes: the first one and how many."""
    rows = o[ROWS] * lanes
    if rows < MANY_ROWS:
        return int64(0), rows
    block = part // _panels(o)
    if _joined(o, lanes):
        row = block * ROW_BLOCK
        return row, min(ROW_BLOCK, rows - row)
    each = (o[ROWS] + ROW_BLOCK - 1) // ROW_BLOCK
    lane = block // each
    t = (block - lane * each) * ROW_BLOCK
    return lane * o[ROWS] + t, min(ROW_BLOCK, o[ROWS] - t)


@inner
def _panels(o):
    return (o[OUT] + PANEL - 1) // PANEL


@inner
def _blocks(o, lanes):
    rows = o[ROWS] * lanes
    if rows < MANY_ROWS:
        return int64(1)
    if _joined(o, lanes):
        return (rows + ROW_BLOCK - 1) // ROW_BLOCK
    return lanes * ((o[ROWS] + ROW_BLOCK - 1) // ROW_BLOCK)


@inner
def _joined(o, lanes):
    """Whether the rows of all lanes lie one behind the other."""
    return lanes == 1 or o[GATHERED] != 0 or o[X_LANE] == o[ROWS] * o[X_ROW]


@inner
def product(o, lanes, first, last, sums):
    """The parts `first` to `last` - 1 of a product."""
    many = o[ROWS] * lanes >= MANY_ROWS
    x, stride = o[X], o[X_ROW]
    if lanes > 1 and o[GATHERED]:
        x, stride = o[GATHERED], o[INSIDE] * 4
    panels = _panels(o)
    table = carray(pointer(o[PANELS]), (panels, 2), np.int64)
    joined = _joined(o, lanes)
    for part in range(first, last):
        p = part % panels
        row, count = product_span(o, lanes, part)
        if joined or many:
            here = x + row * stride
            if not joined:
                lane = row // o[ROWS]
                here = x + lane * o[X_LANE] + (row - lane * o[ROWS]) * stride
            _panel(o, here, stride, row, count, table[p, 0], table[p, 1], p * PANEL, sums)
            continue
        for lane in range(lanes):
            here = x + lane * o[X_LANE]
            row = lane * o[ROWS]
            _panel(o, here, stride, row, o[ROWS], table[p, 0], table[p, 1], p * PANEL, sums)


@inner
def _panel(o, x, stride, row, count, weights, kind, start, sums):
    if kind == INT16:
        _panel_short(o, x, stride, row, count, weights, start, sums)
    else:
        _panel_float(o, x, stride, row, count, weights, start, sums)


@inner
def dot_parts(o, lanes):
    return lanes * ((o[ROWS] + DOT_BLOCK - 1) // DOT_BLOCK)


@inner
def dot_span(o, part):
    """The rows of a part, counted through all lanes: the first one and how many."""
    blocks = (o[ROWS] + DOT_BLOCK - 1) // DOT_BLOCK
    lane = part // blocks
    t = (part - lane * blocks) * DOT_BLOCK
    return lane * o[ROWS] + t, min(DOT_BLOCK, o[ROWS] - t)


@inner
def dot(o, lanes, first, last, sums):
    """A product with so few outputs that no panel is worth its zeros: each is a sum by itself.

    PANELS is the address of the weights, (out, inside) float32.
    """
    inside, out = o[INSIDE], o[OUT]
    weights = carray(pointer(o[PANELS]), (out, inside), f32)
    r = carray(pointer(sums), (out,), f32)
    for part in range(first, last):
        row, count = dot_span(o, part)
        lane = row // o[ROWS]
        begin = row - lane * o[ROWS]
        for t in range(begin, begin + count):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (inside,), f32)
            for n in range(out):
                total = f32(0)
                for k in range(inside):
                    total += x[k] * weights[n, k]
                r[n] = total
            finish_odd(o, sums, np.int64(0), lane * o[ROWS] + t, np.int64(1), np.int64(0))
