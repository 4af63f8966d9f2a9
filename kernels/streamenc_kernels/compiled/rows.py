"""What is done to rows beside products: norms, moves, and convolutions of each channel alone."""

from __future__ import annotations

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import Field
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.products import activate
from streamenc_kernels.compiled.vectormath import inner

f32 = np.float32
ROWS, OUT, INSIDE, PANELS = Field.ROWS, Field.OUT, Field.INSIDE, Field.PANELS
SCALE, BIAS, ACTIVATION = Field.SCALE, Field.BIAS, Field.ACTIVATION
X, X_ROW, X_LANE, GATHERED = Field.X, Field.X_ROW, Field.X_LANE, Field.GATHERED
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
A, B, C, D, E = Field.A, Field.B, Field.C, Field.D, Field.E
RESIDUAL, RESIDUAL_ROW = Field.RESIDUAL, Field.RESIDUAL_ROW
RESIDUAL_LANE, RESIDUAL_ROWS = Field.RESIDUAL_LANE, Field.RESIDUAL_ROWS


@inner
def norm_row(x, y, n, scale, bias, eps, centred):
    """y = (x - mean) / sqrt(variance + eps) * scale + bias; without a mean where not centred (RMS).

    bias  An address, 0 for none; `scale` and `eps` are addresses as well.
    """
    factor = carray(pointer(scale), (n,), f32)
    mean = f32(0)
    if centred:
        for i in range(n):
            mean += x[i]
        mean /= f32(n)
    spread = f32(0)
    for i in range(n):
        apart = x[i] - mean
        spread += apart * apart
    r = f32(1) / np.sqrt(spread / f32(n) + carray(pointer(eps), (1,), f32)[0])
    if bias:
        added = carray(pointer(bias), (n,), f32)
        for i in range(n):
            y[i] = (x[i] - mean) * r * factor[i] + added[i]
    else:
        for i in range(n):
            y[i] = (x[i] - mean) * r * factor[i]


@inner
def norm(o, lanes):
    """`norm_row` of each row, not centred where A is 1; B is the address of eps."""
    n = o[OUT]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (n,), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (n,), f32)
            norm_row(x, y, n, o[SCALE], o[BIAS], o[B], o[A] == 0)


@inner
def depthwise(o, lanes):
    """A convolution of each channel alone, B rows of X_ROW / D apart each; and what follows it.

    D is the stride, A the taps, whose weights (A, channels) lie at PANELS; SCALE and BIAS are the
    norm's behind it, which has none where C, the address of eps, is 0; E is the convolution's own
    bias, 0 for none. Without a norm it adds RESIDUAL, where RESIDUAL_ROWS says so.
    """
    n, taps = o[OUT], o[A]
    apart = o[X_ROW] // o[D] * o[B]
    w = carray(pointer(o[PANELS]), (taps, n), f32)
    for lane in range(lanes):
        for t in range(o[ROWS]):
            place = o[X] + lane * o[X_LANE] + t * o[X_ROW]
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (n,), f32)
            x = carray(pointer(place), (n,), f32)
            if o[E]:
                bias = carray(pointer(o[E]), (n,), f32)
                for i in range(n):
                    y[i] = bias[i] + x[i] * w[0, i]
            else:
                for i in range(n):
                    y[i] = x[i] * w[0, i]
            for j in range(1, taps):
                x = carray(pointer(place + j * apart), (n,), f32)
                for i in range(n):
                    y[i] += x[i] * w[j, i]
            if o[C]:
                norm_row(y, y, n, o[SCALE], o[BIAS], o[C], True)
            elif t < o[RESIDUAL_ROWS]:
                place = o[RESIDUAL] + lane * o[RESIDUAL_LANE] + t * o[RESIDUAL_ROW]
                x = carray(pointer(place), (n,), f32)
                for i in range(n):
                    y[i] += x[i]


@inner
def turn(o, lanes):
    """ROWS rows of OUT numbers to OUT rows of ROWS, as states have channels and rows positions."""
    rows, n, apart = o[ROWS], o[OUT], o[Y_ROW] // 4
    for lane in range(lanes):
        y = carray(pointer(o[Y] + lane * o[Y_LANE]), (n * apart,), f32)
        for t in range(rows):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (n,), f32)
            for i in range(n):
                y[i * apart + t] = x[i]


@inner
def copy(o, lanes):
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (o[OUT],), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (o[OUT],), f32)
            for i in range(o[OUT]):
                y[i] = x[i]


@inner
def gather(o, lanes):
    """The overlapping rows of several lanes one behind the other; of one lane they lie so."""
    if lanes == 1:
        return
    n = o[INSIDE]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (n,), f32)
            y = carray(pointer(o[GATHERED] + (lane * o[ROWS] + t) * n * 4), (n,), f32)
            for i in range(n):
                y[i] = x[i]


@inner
def fill(o, lanes):
    """Zeros in ROWS rows of OUT numbers."""
    for lane in range(lanes):
        for t in range(o[ROWS]):
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (o[OUT],), f32)
            for i in range(o[OUT]):
                y[i] = f32(0)


@inner
def activate_rows(o, lanes):
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (o[OUT],), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (o[OUT],), f32)
            activate(x, y, o[OUT], o[ACTIVATION])


@inner
def spread(o, lanes):
    """A transposed convolution of each channel alone, whose kernel has two strides.

    A outputs for each of ROWS inputs; PANELS (2 * A, channels) weights by tap; B the overlap that
    came, C the one that goes, each (channels, A) of a lane, which D is the bytes of.
    """
    n, stride, rows = o[OUT], o[A], o[ROWS]
    w = carray(pointer(o[PANELS]), (2 * stride, n), f32)
    for lane in range(lanes):
        before = carray(pointer(o[B] + lane * o[Field.D]), (n, stride), f32)
        after = carray(pointer(o[C] + lane * o[Field.D]), (n, stride), f32)
        for t in range(rows):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (n,), f32)
            for j in range(stride):
                place = o[Y] + lane * o[Y_LANE] + (t * stride + j) * o[Y_ROW]
                y = carray(pointer(place), (n,), f32)
                if t == 0:
                    for i in range(n):
                        y[i] = x[i] * w[j, i] + before[i, j]
                else:
                    old = carray(pointer(o[X] + lane * o[X_LANE] + (t - 1) * o[X_ROW]), (n,), f32)
                    for i in range(n):
                        y[i] = x[i] * w[j, i] + old[i] * w[stride + j, i]
                if o[BIAS]:
                    bias = carray(pointer(o[BIAS]), (n,), f32)
                    for i in range(n):
                        y[i] += bias[i]
        x = carray(pointer(o[X] + lane * o[X_LANE] + (rows - 1) * o[X_ROW]), (n,), f32)
        for j in range(stride):
            for i in range(n):
                after[i, j] = x[i] * w[stride + j, i]
