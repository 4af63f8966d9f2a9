"""The nearest entry of a codebook, told exactly from scores that are not; and look-ups.

A product gives the score of each entry, half its squared norm less its product with the vector: the
least belongs to the nearest. How far a score may be off is known for each entry, so that those that
can be the nearest are few; their distances are computed again, in float64 from float32 entries.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from streamenc_kernels.compiled.instruction import PANEL, Field
from streamenc_kernels.compiled.intrinsics import pointer
from streamenc_kernels.compiled.vectormath import inner

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
OUT, INSIDE, PANELS, SCALE, BIAS = Field.OUT, Field.INSIDE, Field.PANELS, Field.SCALE, Field.BIAS
ROWS, X, X_ROW, X_LANE = Field.ROWS, Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
SCORES, SCORES_LANE, CODES, CODES_LANE, ENTRIES, LIMIT = (
    Field.A, Field.B, Field.C, Field.D, Field.E, Field.F,
)  # fmt: skip
LEVELS, CODE_LEVEL, MISSES = Field.A, Field.B, Field.C
# Rounding a length to float32 makes it no shorter than it was, with this.
LONGER = f32(1 + 2**-20)


@inner
def nearest(o, lanes, scratch):
    """For the vector of each lane the index of the nearest of ENTRIES entries, the lowest of those
    that are equally near; and, where Y is wanted, what the entry leaves of it.

    PANELS    The address of the entries, (ENTRIES, INSIDE) float32.
    SCORES    OUT scores for each lane: ENTRIES, and infinity up to a multiple of PANEL.
    SCALE     slope, and
    BIAS      base: the score of entry j is off by at most slope_j * |x| + base_j.
    LIMIT     The address of the length (float64) from which on scores may overflow, so that all
              entries are compared. Of a vector that is not a number the code is 0.

    The nearest entry j has score_j - off_j <= (its true score) <= score_k + off_k for all k,
    so it is among those with score_j - off_j <= min_k (score_k + off_k).
    """
    n, dim = o[OUT], o[INSIDE]
    entries = carray(pointer(o[PANELS]), (o[ENTRIES], dim), f32)
    limit = carray(pointer(o[LIMIT]), (1,), f64)[0]
    highest = carray(pointer(scratch), (PANEL,), f32)
    for lane in range(lanes):
        x = carray(pointer(o[X] + lane * o[X_LANE]), (dim,), f32)
        scores = o[SCORES] + lane * o[SCORES_LANE]
        total = f64(0)
        for i in range(dim):
            total += f64(x[i]) * f64(x[i])
        length = np.sqrt(total)
        told = length < limit
        bound = f32(np.inf)
        size = f32(0)
        if told:
            size = f32(length) * LONGER
            for q in range(PANEL):
                highest[q] = bound
            for p in range(n // PANEL):
                score, slope, base = _panel(o, scores, p)
                for q in range(PANEL):
                    high = score[q] + (size * slope[q] + base[q])
                    highest[q] = high if high < highest[q] else highest[q]
            for q in range(PANEL):
                bound = min(bound, highest[q])
        code, least = i64(0), f64(np.inf)
        for p in range(n // PANEL):
            score, slope, base = _panel(o, scores, p)
            if told:
                near = i32(0)
                for q in range(PANEL):
                    near += i32(score[q] - (size * slope[q] + base[q]) <= bound)
                if near == 0:
                    continue
            for q in range(min(PANEL, o[ENTRIES] - p * PANEL)):
                if told and score[q] - (size * slope[q] + base[q]) > bound:
                    continue
                distance = f64(0)
                for i in range(dim):
                    apart = f64(x[i]) - f64(entries[p * PANEL + q, i])
                    distance += apart * apart
                if distance < least:
                    code, least = p * PANEL + q, distance
        carray(pointer(o[CODES] + lane * o[CODES_LANE]), (1,), i64)[0] = code
        if o[Y]:
            y = carray(pointer(o[Y] + lane * o[Y_LANE]), (dim,), f32)
            for i in range(dim):
                y[i] = x[i] - entries[code, i]


@inner
def _panel(o, scores, p):
    """Scores of PANEL entries, and their slopes and bases."""
    at = p * PANEL * 4
    return (
        carray(pointer(scores + at), (PANEL,), f32),
        carray(pointer(o[SCALE] + at), (PANEL,), f32),
        carray(pointer(o[BIAS] + at), (PANEL,), f32),
    )


@inner
def look_up(o, lanes):
    """The sum of the entries of LEVELS codes for each of ROWS rows, in the order of the levels.

    PANELS    The address of the codebooks, (levels, ENTRIES, OUT) float32.
    X         The codes, int64: X_ROW to the next row, CODE_LEVEL to the next level.
    MISSES    The address of a number that becomes 1 where a code is no entry.
    """
    n, levels, entries = o[OUT], o[LEVELS], o[ENTRIES]
    for lane in range(lanes):
        for t in range(o[ROWS]):
            y = carray(pointer(o[Y] + lane * o[Y_LANE] + t * o[Y_ROW]), (n,), f32)
            if levels == 0:
                for i in range(n):
                    y[i] = f32(0)
            for level in range(levels):
                place = o[X] + lane * o[X_LANE] + t * o[X_ROW] + level * o[CODE_LEVEL]
                code = carray(pointer(place), (1,), i64)[0]
                if code < 0 or code >= entries:
                    carray(pointer(o[MISSES]), (1,), i64)[0] = 1
                    continue
                entry = carray(pointer(o[PANELS] + (level * entries + code) * n * 4), (n,), f32)
                if level == 0:
                    for i in range(n):
                        y[i] = entry[i]
                else:
                    for i in range(n):
                        y[i] += entry[i]
