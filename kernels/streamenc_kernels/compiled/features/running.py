"""Normalisation over time, with statistics that run along."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from streamenc_kernels.compiled.instruction import PANEL, Field
from streamenc_kernels.compiled.intrinsics import I64, pointer
from streamenc_kernels.compiled.products import activate
from streamenc_kernels.compiled.tiles import (
    VECTOR,
    WIDTH,
    at,
    every,
    fma,
    make_row_end,
    number,
)
from streamenc_kernels.compiled.vectormath import inner

f32 = np.float32
ROWS, OUT, INSIDE, PANELS = Field.ROWS, Field.OUT, Field.INSIDE, Field.PANELS
SCALE, BIAS, ACTIVATION = Field.SCALE, Field.BIAS, Field.ACTIVATION
X, X_ROW, X_LANE = Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
Z, Z_ROW, Z_LANE = Field.Z, Field.Z_ROW, Field.Z_LANE
A, B, C, D, E, F, G = Field.A, Field.B, Field.C, Field.D, Field.E, Field.F, Field.G
VECTORS = PANEL // WIDTH
# Sums over so many positions are added up: each is made of numbers of one size.
STRETCH = 64
_row_end = make_row_end(VECTORS)


def _make_column_sums(squared: bool) -> Any:
    """Over some rows, for PANEL channels: sums of x - mean, or of its square."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, stride, rows, mean, sums = arguments
        means = [b.load(at(b, mean, p * WIDTH * 4), align=4) for p in range(VECTORS)]
        entry, loop, after = b.block, b.append_basic_block("row"), b.append_basic_block("rows")
        b.branch(loop)
        b.position_at_end(loop)
        left, row = b.phi(I64), b.phi(I64)
        held = [b.phi(VECTOR) for _ in range(VECTORS)]
        turns = [(left, rows, b.sub(left, number(1))), (row, x, b.add(row, stride))]
        for p in range(VECTORS):
            apart = b.fsub(b.load(at(b, row, p * WIDTH * 4), align=4), means[p])
            new = fma(b, apart, apart, held[p]) if squared else b.fadd(held[p], apart)
            turns.append((held[p], every(0), new))
        for phi, before, then in turns:
            phi.add_incoming(before, entry)
            phi.add_incoming(then, loop)
        b.cbranch(b.icmp_signed(">", turns[0][2], number(0)), loop, after)
        b.position_at_end(after)
        for p in range(VECTORS):
            b.store(turns[2 + p][2], at(b, sums, p * WIDTH * 4), align=4)
        return context.get_dummy_value()

    @intrinsic
    def column_sums(typing: Any, x: Any, stride: Any, rows: Any, mean: Any, sums: Any) -> Any:
        return types.void(*[types.int64] * 5), generate

    return column_sums


_sums, _squares = _make_column_sums(False), _make_column_sums(True)


@inner
def _added(x, stride, rows, wide, mean, sums, total, squared):
    """`total` becomes the sums over all rows."""
    m = carray(pointer(mean), (PANEL,), f32)
    r = carray(pointer(sums), (PANEL,), f32)
    y = carray(pointer(total), (PANEL,), f32)
    for i in range(PANEL):
        y[i] = f32(0)
    for start in range(0, rows, STRETCH):
        count = min(STRETCH, rows - start)
        here = x + start * stride
        if wide == PANEL and squared:
            _squares(here, stride, count, mean, sums)
        elif wide == PANEL:
            _sums(here, stride, count, mean, sums)
        elif wide == 1 and stride == 4:
            v = carray(pointer(here), (count,), f32)
            one, shift = f32(0), m[0]
            for t in range(count):
                apart = v[t] - shift
                one += apart * apart if squared else apart
            r[0] = one
        else:
            for i in range(wide):
                r[i] = f32(0)
            for t in range(count):
                v = carray(pointer(here + t * stride), (wide,), f32)
                for i in range(wide):
                    apart = v[i] - m[i]
                    r[i] += apart * apart if squared else apart
        for i in range(wide):
            y[i] += r[i]


@inner
def running_parts(o, lanes):
    return lanes * ((o[OUT] + PANEL - 1) // PANEL)


@inner
def running(o, lanes, first, last, scratch):
    """y = (x - mean) / sqrt(variance + eps) * scale + bias of each channel; z = activation(y).

    Mean and variance are those of blocks of G positions and of what was before: of as many
    positions as A says, int64 of each lane, of which INSIDE count at most, or all where that is 0.
    Means come at C and go to D, variances come at E and go to F, (lanes, OUT); counts go to B.
    Where A is 0 nothing runs: the same mean and variance, (OUT,), are those of all lanes. PANELS is
    the address of eps.
    """
    n = o[OUT]
    panels = (n + PANEL - 1) // PANEL
    eps = carray(pointer(o[PANELS]), (1,), f32)[0]
    mean, spread = scratch, scratch + 4 * PANEL
    total, sums = scratch + 8 * PANEL, scratch + 12 * PANEL
    scale, shift = scratch + 16 * PANEL, scratch + 20 * PANEL
    m = carray(pointer(mean), (PANEL,), f32)
    v = carray(pointer(spread), (PANEL,), f32)
    new = carray(pointer(total), (PANEL,), f32)
    new_mean = carray(pointer(sums + 24 * PANEL), (PANEL,), f32)
    factor = carray(pointer(scale), (PANEL,), f32)
    added = carray(pointer(shift), (PANEL,), f32)
    for part in range(first, last):
        lane = part // panels
        start = (part - lane * panels) * PANEL
        wide, column = min(PANEL, n - start), start * 4
        runs = o[A] != 0
        where = (lane * n if runs else 0) * 4 + column
        came = carray(pointer(o[C] + where), (wide,), f32)
        came_spread = carray(pointer(o[E] + where), (wide,), f32)
        for i in range(wide):
            m[i], v[i] = came[i], came_spread[i]
        count = carray(pointer(o[A]), (lanes,), np.int64)[lane] if runs else 0
        for begin in range(0, o[ROWS], o[G]):
            x = o[X] + lane * o[X_LANE] + begin * o[X_ROW] + column
            if runs:
                size = o[G]
                count += size
                if o[INSIDE]:
                    count = min(count, o[INSIDE])
                w = min(f32(size) / f32(count), f32(1))
                # Summed up around the mean so far, which loses nothing where that is large.
                _added(x, o[X_ROW], size, wide, mean, sums, total, False)
                for i in range(wide):
                    new_mean[i] = m[i] + new[i] / f32(size)
                _added(x, o[X_ROW], size, wide, sums + 24 * PANEL, sums, total, True)
                for i in range(wide):
                    apart = new_mean[i] - m[i]
                    m[i] = m[i] + w * apart
                    v[i] = (f32(1) - w) * (v[i] + w * apart * apart) + w * new[i] / f32(size)
            for i in range(wide):
                factor[i] = f32(1) / np.sqrt(v[i] + eps)
                added[i] = -m[i] * factor[i]
            if o[SCALE]:
                learnt = carray(pointer(o[SCALE] + column), (wide,), f32)
                bias = carray(pointer(o[BIAS] + column), (wide,), f32)
                for i in range(wide):
                    factor[i] *= learnt[i]
                    added[i] = bias[i] - m[i] * factor[i]
            y = o[Y] + lane * o[Y_LANE] + begin * o[Y_ROW] + column
            z = o[Z] + lane * o[Z_LANE] + begin * o[Z_ROW] + column
            _scaled(o, x, y if o[Y] else 0, z if o[Z] else 0, wide, scale, shift, sums)
        if runs:
            goes = carray(pointer(o[D] + where), (wide,), f32)
            goes_spread = carray(pointer(o[F] + where), (wide,), f32)
            for i in range(wide):
                goes[i], goes_spread[i] = m[i], v[i]
            if start == 0:
                carray(pointer(o[B]), (lanes,), np.int64)[lane] = count


@inner
def _scaled(o, x, y, z, wide, scale, shift, sums):
    """A block of rows times `scale`, plus `shift`."""
    rows = min(o[G], o[ROWS])
    factor = carray(pointer(scale), (wide,), f32)
    added = carray(pointer(shift), (wide,), f32)
    if wide == 1 and o[X_ROW] == 4 and y and o[Y_ROW] == 4 and not z:
        f, a = factor[0], added[0]
        u = carray(pointer(x), (rows,), f32)
        r = carray(pointer(y), (rows,), f32)
        for t in range(rows):
            r[t] = u[t] * f + a
        return
    for t in range(rows):
        here = x + t * o[X_ROW]
        there = y + t * o[Y_ROW] if y else 0
        behind = z + t * o[Z_ROW] if z else 0
        if wide == PANEL:
            _row_end(here, scale, shift, 0, there, behind, o[ACTIVATION])
            continue
        u = carray(pointer(here), (wide,), f32)
        r = carray(pointer(sums), (PANEL,), f32)
        for i in range(wide):
            r[i] = u[i] * factor[i] + added[i]
        if there:
            target = carray(pointer(there), (wide,), f32)
            for i in range(wide):
                target[i] = r[i]
        if behind:
            target = carray(pointer(behind), (wide,), f32)
            activate(r, target, wide, o[ACTIVATION])
