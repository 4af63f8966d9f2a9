"""Short-time spectra: windows to spectra and back, what is made of them, and overlapping windows.

A transform of N = first * second real numbers takes two steps of products with small matrices, with
a factor for each number between them (Cooley and Tukey, Mathematics of Computation 19, 1965): of
n = n1 * second + n2 and k = k1 + first * k2,

    X[k] = sum over n2 of e(k2 n2 / second) e(k1 n2 / N) sum over n1 of e(k1 n1 / first) x[n],

where e(a) is exp(-2 pi i a). Numbers are real, so k1 up to first / 2 says it all. There and back
the matrices are all that is read, some kilobytes.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import PANEL, Field, WeightType
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.tiles import WIDTH, make_tile
from streamenc_kernels.compiled.vectormath import exp, inner, log

f32 = np.float32
ROWS, OUT, X, X_ROW, X_LANE = Field.ROWS, Field.OUT, Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
A, B, C, D, E = Field.A, Field.B, Field.C, Field.D, Field.E
# Rows of the small matrices come in blocks of so many, the last one filled up with zeros.
BLOCK = 8
PITCH = PANEL * 4
_tile = make_tile(BLOCK, 1, WeightType.FLOAT32)


@inner
def blocks_of(rows):
    """`rows`, up to a whole number of blocks."""
    return (rows + BLOCK - 1) // BLOCK * BLOCK


@inner
def product_of(matrix, rows, inside, columns, operand, sums):
    """matrix (rows, inside) times operand (inside, columns of a pitch of PANEL), WIDTH columns
    after the other: sums[column // WIDTH, row, column % WIDTH], of whole blocks of rows."""
    padded = blocks_of(rows)
    for column in range(0, columns, WIDTH):
        target = sums + column * padded * 4
        for row in range(0, padded, BLOCK):
            here = matrix + row * inside * 4
            _tile(here, inside * 4, operand + column * 4, inside, target + row * WIDTH * 4)


@inner
def transform(o, lanes, scratch):
    """Rows of N numbers, behind a window, to N / 2 + 1 real and as many imaginary parts.

    N = A * B; C is the address of the window, (N,), and behind it three tables: (2 * k1, A) for the
    first sums, of cosines and then of sines; a factor (2, k1, B) for each of them; and (2 * B, 2 *
    B) for the second ones. k1 = A / 2 + 1; matrices have whole blocks of rows.
    """
    first, second, bins = o[A], o[B], o[A] * o[B] // 2 + 1
    count = first * second
    half = first // 2 + 1
    window = carray(pointer(o[C]), (count,), f32)
    first_matrix = o[C] + count * 4
    factors_at = first_matrix + blocks_of(2 * half) * first * 4
    second_matrix = factors_at + 2 * half * second * 4
    factors = carray(pointer(factors_at), (2, half, second), f32)
    # Operands have a pitch of PANEL; sums lie behind them.
    operand = carray(pointer(scratch), (max(first, 2 * second), PANEL), f32)
    sums_at = scratch + max(first, 2 * second) * PITCH
    rows1, rows2 = blocks_of(2 * half), blocks_of(2 * second)
    sums1 = carray(pointer(sums_at), ((second + WIDTH - 1) // WIDTH, rows1, WIDTH), f32)
    sums2 = carray(pointer(sums_at), ((half + WIDTH - 1) // WIDTH, rows2, WIDTH), f32)
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (count,), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (2 * bins,), f32)
            for n1 in range(first):
                for n2 in range(second):
                    operand[n1, n2] = x[n1 * second + n2] * window[n1 * second + n2]
            product_of(first_matrix, 2 * half, first, second, scratch, sums_at)
            for k1 in range(half):
                for n2 in range(second):
                    real = sums1[n2 // WIDTH, k1, n2 % WIDTH]
                    imag = sums1[n2 // WIDTH, half + k1, n2 % WIDTH]
                    c, s = factors[0, k1, n2], factors[1, k1, n2]
                    operand[n2, k1] = real * c - imag * s
                    operand[second + n2, k1] = real * s + imag * c
            product_of(second_matrix, 2 * second, 2 * second, half, scratch, sums_at)
            for k2 in range(second):
                for k1 in range(half):
                    k = k1 + first * k2
                    real = sums2[k1 // WIDTH, k2, k1 % WIDTH]
                    imag = sums2[k1 // WIDTH, second + k2, k1 % WIDTH]
                    if k < bins:
                        y[k] = real
                        y[bins + k] = imag
                    elif count - k < bins:  # the mirror image of a bin that no k1 of ours leads to
                        y[count - k] = real
                        y[bins + count - k] = -imag


@inner
def invert(o, lanes, scratch):
    """Rows of `transform`'s bins to N numbers, behind a window.

    Imaginary parts of the first and the last bin do not count. C as there, but first (2 * B, 2 *
    B), then the factors (2, k1, B), then (A, 2 * k1).
    """
    first, second, bins = o[A], o[B], o[A] * o[B] // 2 + 1
    count = first * second
    half = first // 2 + 1
    rows1, rows2 = blocks_of(2 * second), blocks_of(first)
    window = carray(pointer(o[C]), (count,), f32)
    first_matrix = o[C] + count * 4
    factors_at = first_matrix + rows1 * 2 * second * 4
    second_matrix = factors_at + 2 * half * second * 4
    factors = carray(pointer(factors_at), (2, half, second), f32)
    operand = carray(pointer(scratch), (2 * max(half, second), PANEL), f32)
    sums_at = scratch + 2 * max(half, second) * PITCH
    sums1 = carray(pointer(sums_at), ((half + WIDTH - 1) // WIDTH, rows1, WIDTH), f32)
    sums2 = carray(pointer(sums_at), ((second + WIDTH - 1) // WIDTH, rows2, WIDTH), f32)
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (2 * bins,), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (count,), f32)
            for k2 in range(second):
                for k1 in range(half):
                    k = k1 + first * k2
                    sign = f32(1)
                    if k >= bins:
                        k = count - k
                        sign = f32(-1)
                    operand[k2, k1] = x[k]
                    operand[second + k2, k1] = sign * x[bins + k]
            operand[second, 0] = f32(0)
            last = bins - 1
            if last % first < half:
                operand[second + last // first, last % first] = f32(0)
            product_of(first_matrix, 2 * second, 2 * second, half, scratch, sums_at)
            for n2 in range(second):
                for k1 in range(half):
                    real = sums1[k1 // WIDTH, n2, k1 % WIDTH]
                    imag = sums1[k1 // WIDTH, second + n2, k1 % WIDTH]
                    c, s = factors[0, k1, n2], factors[1, k1, n2]
                    operand[k1, n2] = real * c - imag * s
                    operand[half + k1, n2] = real * s + imag * c
            product_of(second_matrix, first, 2 * half, second, scratch, sums_at)
            for n1 in range(first):
                for n2 in range(second):
                    n = n1 * second + n2
                    y[n] = sums2[n2 // WIDTH, n1, n2 % WIDTH] * window[n]


@inner
def compress(o, lanes):
    """Rows of OUT real and OUT imaginary parts to both and the magnitude, compressed.

    See `compress_spectrum_torch`. C is the address of half the exponent, and of silence.
    """
    bins = o[OUT]
    half, silence = carray(pointer(o[C]), (2,), f32)
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (2 * bins,), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (3 * bins,), f32)
            for k in range(bins):
                real, imag = x[k], x[bins + k]
                power = real * real + imag * imag + silence
                loudness = exp(half * log(power))
                scale = loudness / np.sqrt(power)
                y[k] = real * scale
                y[bins + k] = imag * scale
                y[2 * bins + k] = loudness


@inner
def direct(o, lanes):
    """Rows of OUT logarithms of magnitudes, up to 0, and OUT real and imaginary parts of what has
    the phase, to real and imaginary parts. C is the address of silence."""
    bins = o[OUT]
    silence = carray(pointer(o[C]), (1,), f32)[0]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            x = carray(pointer(o[X] + lane * o[X_LANE] + t * o[X_ROW]), (3 * bins,), f32)
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (2 * bins,), f32)
            for k in range(bins):
                real, imag = x[bins + k], x[2 * bins + k]
                power = real * real + imag * imag + silence
                scale = exp(min(x[k], f32(0))) / np.sqrt(power)
                y[k] = real * scale
                y[bins + k] = imag * scale


@inner
def overlap(o, lanes):
    """Adds up rows of A * OUT samples, each OUT samples behind the one before.

    B is what earlier rows add to the first A - 1 hops, C where the same goes for those behind these
    rows, (A - 1, OUT) of a lane, which D is the bytes of. Y_ROW is that of a hop. E is the address
    of the largest size of what comes out, 0 for none.
    """
    hop, parts, rows = o[OUT], o[A], o[ROWS]
    for lane in range(lanes):
        base = o[X] + lane * o[X_LANE]
        for t in range(rows + parts - 1):
            place = o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]
            if t >= rows:
                place = o[C] + lane * o[D] + (t - rows) * hop * 4
            y = carray(pointer(place), (hop,), f32)
            first = max(0, t - parts + 1)
            begun = False
            for row in range(min(t, rows - 1), first - 1, -1):
                x = carray(pointer(base + row * o[X_ROW] + (t - row) * hop * 4), (hop,), f32)
                if begun:
                    for i in range(hop):
                        y[i] += x[i]
                else:
                    for i in range(hop):
                        y[i] = x[i]
                begun = True
            if t < parts - 1:
                x = carray(pointer(o[B] + lane * o[D] + t * hop * 4), (hop,), f32)
                for i in range(hop):
                    y[i] += x[i]
            if t < rows and o[E]:
                most = carray(pointer(o[E]), (1,), f32)[0]
                for i in range(hop):
                    y[i] = min(max(y[i], -most), most)
