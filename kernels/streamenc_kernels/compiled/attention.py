"""Attention over a ring of keys and values, and the rotation of what goes into it."""

from __future__ import annotations

import math

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import Field
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.vectormath import exp, inner

f32 = np.float32
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
    return 4 * (o[INSIDE] + o[C] + 2 * o[ROWS] * o[INSIDE])


@inner
def attend(o, lanes, part, scratch):
    """Parts are heads of lanes, OUT of each lane, INSIDE channels each.

    x holds queries, keys and values of all heads, one behind the other. A ring of SLOTS = C slots,
    of which a query sees the newest D: keys at B, values at E, (lanes, heads, slots, INSIDE); A the
    first positions; F the table that `rotary` made. The ring has what was before; what comes out,
    and what goes into the ring, stays in scratch memory until `attended`.
    """
    heads, dim, slots, window, rows = o[OUT], o[INSIDE], o[C], o[D], o[ROWS]
    half, wide = dim // 2, heads * dim
    lane = part // heads
    h = part - lane * heads
    first = carray(pointer(o[A]), (lanes,), np.int64)[lane]
    table = carray(pointer(o[F]), (lanes, rows, 2, half), f32)
    q = carray(pointer(scratch), (dim,), f32)
    scores = carray(pointer(scratch + dim * 4), (slots,), f32)
    new_keys = carray(pointer(scratch + (dim + slots) * 4), (rows, dim), f32)
    ys = carray(pointer(scratch + (dim + slots + rows * dim) * 4), (rows, dim), f32)
    keys = carray(pointer(o[B] + part * slots * dim * 4), (slots, dim), f32)
    values = carray(pointer(o[E] + part * slots * dim * 4), (slots, dim), f32)
    factor = f32(1.0 / math.sqrt(dim))
    xs = o[X] + lane * o[X_LANE] + h * dim * 4
    for t in range(rows):
        xq = carray(pointer(xs + t * o[X_ROW]), (dim,), f32)
        xk = carray(pointer(xs + t * o[X_ROW] + wide * 4), (dim,), f32)
        y = ys[t]
        for i in range(half):
            c = table[lane, t, 0, i]
            s = table[lane, t, 1, i]
            q[i] = (xq[i] * c - xq[i + half] * s) * factor
            q[i + half] = (xq[i + half] * c + xq[i] * s) * factor
            new_keys[t, i] = xk[i] * c - xk[i + half] * s
            new_keys[t, i + half] = xk[i + half] * c + xk[i] * s
        # What a query sees lies in the ring as one piece, or as two, and among what is new.
        at = first + t
        oldest = max(0, at - window + 1)
        count, old = at - oldest + 1, max(0, first - oldest)
        begin = oldest % slots
        before = min(old, slots - begin)
        most = f32(-3e38)
        for n in range(old):
            s = begin + n if n < before else n - before
            a = f32(0)
            for i in range(dim):
                a += keys[s, i] * q[i]
            scores[n] = a
            most = max(most, a)
        for n in range(old, count):
            s = oldest + n - first
            a = f32(0)
            for i in range(dim):
                a += new_keys[s, i] * q[i]
            scores[n] = a
            most = max(most, a)
        total = f32(0)
        for n in range(count):
            e = exp(scores[n] - most)
            scores[n] = e
            total += e
        total = f32(1) / total
        for i in range(dim):
            y[i] = f32(0)
        for n in range(old):
            s = begin + n if n < before else n - before
            e = scores[n] * total
            for i in range(dim):
                y[i] += values[s, i] * e
        for n in range(old, count):
            place = xs + (oldest + n - first) * o[X_ROW] + 2 * wide * 4
            value = carray(pointer(place), (dim,), f32)
            e = scores[n] * total
            for i in range(dim):
                y[i] += value[i] * e


@inner
def attended(o, lanes, part, scratch):
    """Brings what `attend` left in scratch memory to where it goes."""
    heads, dim, slots, rows = o[OUT], o[INSIDE], o[C], o[ROWS]
    lane = part // heads
    h = part - lane * heads
    first = carray(pointer(o[A]), (lanes,), np.int64)[lane]
    new_keys = carray(pointer(scratch + (dim + slots) * 4), (rows, dim), f32)
    ys = carray(pointer(scratch + (dim + slots + rows * dim) * 4), (rows, dim), f32)
    keys = carray(pointer(o[B] + part * slots * dim * 4), (slots, dim), f32)
    values = carray(pointer(o[E] + part * slots * dim * 4), (slots, dim), f32)
    for t in range(rows):
        place = o[X] + lane * o[X_LANE] + t * o[X_ROW] + (2 * heads + h) * dim * 4
        x = carray(pointer(place), (dim,), f32)
        y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW] + h * dim * 4), (dim,), f32)
        slot = (first + t) % slots
        for i in range(dim):
            keys[slot, i] = new_keys[t, i]
            values[slot, i] = x[i]
            y[i] = ys[t, i]
