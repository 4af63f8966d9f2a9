"""What goes through gates: the cells of an LSTM, and gated feed-forwards; and sums of two rows."""

from __future__ import annotations

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import Field
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.products import activate
from streamenc_kernels.compiled.vectormath import inner, sigmoid, silu, tanh

f32 = np.float32
ROWS, OUT, ACTIVATION = Field.ROWS, Field.OUT, Field.ACTIVATION
X, X_ROW, X_LANE = Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
Z, Z_ROW, Z_LANE = Field.Z, Field.Z_ROW, Field.Z_LANE
RESIDUAL, RESIDUAL_ROW, RESIDUAL_LANE = (
    Field.RESIDUAL, Field.RESIDUAL_ROW, Field.RESIDUAL_LANE,
)  # fmt: skip
A, B, C, D = Field.A, Field.B, Field.C, Field.D


@inner
def cell(o, lanes):
    """One position of an LSTM's layer of OUT channels: x holds the sums for the input, forget,
    cell and output gate, one behind the other, and y becomes the hidden state.

    The cell state (OUT,) of a lane that came lies at A, lanes B bytes apart, and goes to C, lanes
    D bytes apart; the two do not overlap.
    """
    n = o[OUT]
    for lane in range(lanes):
        x = carray(pointer(o[X] + lane * o[X_LANE]), (4, n), f32)
        before = carray(pointer(o[A] + lane * o[B]), (n,), f32)
        after = carray(pointer(o[C] + lane * o[D]), (n,), f32)
        y = carray(pointer(o[Y] + lane * o[Y_LANE]), (n,), f32)
        for i in range(n):
            kept = sigmoid(x[1, i]) * before[i] + sigmoid(x[0, i]) * tanh(x[2, i])
            after[i] = kept
            y[i] = sigmoid(x[3, i]) * tanh(kept)


@inner
def add(o, lanes):
    """y = x + residual; z = activation(y)."""
    n = o[OUT]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (n,), f32)
            place = o[RESIDUAL] + lane * o[RESIDUAL_LANE] + t * o[RESIDUAL_ROW]
            other = carray(pointer(place), (n,), f32)
            if o[Y]:
                y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (n,), f32)
                for i in range(n):
                    y[i] = x[i] + other[i]
            if o[Z]:
                z = carray(pointer(o[Z] + lane * o[Z_LANE] + t * o[Z_ROW]), (n,), f32)
                for i in range(n):
                    z[i] = x[i] + other[i]
                activate(z, z, n, o[ACTIVATION])


@inner
def gate(o, lanes):
    """y = silu(x[:OUT]) * x[OUT:]."""
    n = o[OUT]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (2, n), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (n,), f32)
            for i in range(n):
                y[i] = silu(x[0, i]) * x[1, i]
