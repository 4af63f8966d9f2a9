"""Attention over a ring of keys and values, and the rotation of what goes into it."""

from __future__ import annotations

import math

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import PANEL, Field, WeightType
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.products import SHAPE
from streamenc_kernels.compiled.tiles import WIDTH, make_dots, make_tile
from streamenc_kernels.compiled.vectormath import exp, inner

f32 = np.float32
# The values of a head are a panel where it has as many channels as one.
panel_dots = make_dots(PANEL // WIDTH)
ROW_WIDTH = SHAPE[1] * WIDTH
row_tile = make_tile(1, SHAPE[1], WeightType.FLOAT32)
# Where the scratch has what: queries from its beginning, sums, and scores to its end.
MIXED, MIXED_TOO, SCORES = 2048, 4096, 6144
ROWS, OUT, INSIDE = Field.ROWS, Field.OUT, Field.INSIDE
X, X_ROW, X_LANE = Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
A, B, C, D, E, F = Field.A, Field.B, Field.C, Field.D, Field.E, Field.F


@inner
def rotary(o, lanes):
    """cos and sin of the angles of ROWS positions from A on, an int64 of each lane.

    y (lanes, ROWS, 2, OUT) for OUT frequencies, B (OUT,) float64.
    """
    half = o[OUT]
    frequency = carray(pointer(o[B]), (half,), np.float64)
    first = carray(pointer(o[A]), (lanes,), np.int64)
    y = carray(pointer(o[Y]), (lanes, o[ROWS], 2, half), f32)
    for lane in range(lanes):
        for t in range(o[ROWS]):
            for i in range(half):
                angle = (first[lane] + t) * frequency[i]
                y[lane, t, 0, i] = math.cos(angle)
                y[lane, t, 1, i] = math.sin(angle)


@inner
def advance(o, lanes):
    """The positions at B are those at A, ROWS further."""
    before = carray(pointer(o[A]), (lanes,), np.int64)
    after = carray(pointer(o[B]), (lanes,), np.int64)
    for lane in range(lanes):
        after[lane] = before[lane] + o[ROWS]


@inner
def attend_bytes(o):
    """What `attend` needs of scratch memory."""
    return SCORES + o[C] * 4


@inner
def may_write_first(o):
    """Whether the ring holds what the first position of a step sees beside the step's last one."""
    return o[C] >= o[D] + o[ROWS] - 1


@inner
def write_ring(o, lanes, part, t):
    """Brings a position's key and value of a head to the ring."""
    heads, dim, slots = o[OUT], o[INSIDE], o[C]
    half, wide = dim // 2, heads * dim
    lane = part // heads
    h = part - lane * heads
    first = carray(pointer(o[A]), (lanes,), np.int64)[lane]
    table = carray(pointer(o[F]), (lanes, o[ROWS], 2, half), f32)
    x = o[X] + lane * o[X_LANE] + t * o[X_ROW] + h * dim * 4
    xk = carray(pointer(x + wide * 4), (dim,), f32)
    xv = carray(pointer(x + 2 * wide * 4), (dim,), f32)
    place = (part * slots + (first + t) % slots) * dim * 4
    key = carray(pointer(o[B] + place), (dim,), f32)
    value = carray(pointer(o[E] + place), (dim,), f32)
    for i in range(half):
        c = table[lane, t, 0, i]
        s = table[lane, t, 1, i]
        key[i] = xk[i] * c - xk[i + half] * s
        key[i + half] = xk[i + half] * c + xk[i] * s
    for i in range(dim):
        value[i] = xv[i]


@inner
def attend(o, lanes, first, last, scratch, writes):
    """Parts are heads of lanes, OUT of each lane, INSIDE channels each.

    x holds queries, keys and values of all heads, one behind the other. A ring of C slots, of which
    a query sees the newest D: keys at B, values at E, (lanes, heads, slots, INSIDE); A the first
    positions; F the table that `rotary` made. Positions are written and attend one after the other,
    or, without `writes`, are there already.
    """
    heads, dim, slots, window, rows = o[OUT], o[INSIDE], o[C], o[D], o[ROWS]
    half = dim // 2
    positions = carray(pointer(o[A]), (lanes,), np.int64)
    table = carray(pointer(o[F]), (lanes, rows, 2, half), f32)
    q = carray(pointer(scratch), (dim,), f32)
    factor = f32(1.0 / math.sqrt(dim))
    for part in range(first, last):
        lane = part // heads
        h = part - lane * heads
        own = part * slots * dim * 4
        for t in range(rows):
            x = o[X] + lane * o[X_LANE] + t * o[X_ROW] + h * dim * 4
            xq = carray(pointer(x), (dim,), f32)
            at = positions[lane] + t
            if writes:
                write_ring(o, lanes, part, t)
            for i in range(half):
                c = table[lane, t, 0, i]
                s = table[lane, t, 1, i]
                q[i] = (xq[i] * c - xq[i + half] * s) * factor
                q[i + half] = (xq[i + half] * c + xq[i] * s) * factor
            # What a query sees lies in the ring as one piece, or as two.
            oldest = max(0, at - window + 1)
            begin, count = oldest % slots, at - oldest + 1
            before = min(count, slots - begin)
            scores = scratch + SCORES
            score(scratch, o[B] + own + begin * dim * 4, before, dim, scores)
            score(scratch, o[B] + own, count - before, dim, scores + before * 4)
            total = soften(scores, count)
            mix(scores, o[E] + own + begin * dim * 4, before, dim, scratch + MIXED)
            mix(scores + before * 4, o[E] + own, count - before, dim, scratch + MIXED_TOO)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW] + h * dim * 4), (dim,), f32)
            one = carray(pointer(scratch + MIXED), (dim,), f32)
            two = carray(pointer(scratch + MIXED_TOO), (dim,), f32)
            for i in range(dim):
                y[i] = (one[i] + two[i]) * total


@inner
def score(q, rows, count, dim, scores):
    """The products of q with `count` rows of `dim` numbers; all are addresses."""
    if count == 0:
        return
    if dim == PANEL:
        panel_dots(q, rows, count, scores)
        return
    x = carray(pointer(q), (dim,), f32)
    keys = carray(pointer(rows), (count, dim), f32)
    y = carray(pointer(scores), (count,), f32)
    for n in range(count):
        a = f32(0)
        for i in range(dim):
            a += keys[n, i] * x[i]
        y[n] = a


@inner
def soften(scores, count):
    """Makes weights of scores; gives what they are to be multiplied by so that they sum up to 1."""
    y = carray(pointer(scores), (count,), f32)
    most = y[0]
    for n in range(count):
        most = max(most, y[n])
    total = f32(0)
    for n in range(count):
        e = exp(y[n] - most)
        y[n] = e
        total += e
    return f32(1) / total


@inner
def mix(weights, rows, count, dim, y):
    """The sum of `count` rows of `dim` numbers, each times its weight; all are addresses."""
    if dim == PANEL:
        for part in range(PANEL // ROW_WIDTH):
            offset = part * ROW_WIDTH * 4
            row_tile(weights, 0, rows + offset, count, y + offset)
        return
    w = carray(pointer(weights), (count,), f32)
    values = carray(pointer(rows), (count, dim), f32)
    total = carray(pointer(y), (dim,), f32)
    for i in range(dim):
        total[i] = f32(0)
    for n in range(count):
        e = w[n]
        for i in range(dim):
            total[i] += values[n, i] * e
