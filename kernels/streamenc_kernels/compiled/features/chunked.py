"""Attention of chunks: all queries of a chunk see the same keys, so their scores are products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from streamenc_kernels.compiled.instruction import PANEL, Field, WeightType
from streamenc_kernels.compiled.intrinsics import I64, pointer
from streamenc_kernels.compiled.tiles import (
    VECTOR,
    WIDTH,
    at,
    every,
    exp_of,
    larger,
    make_tile,
    number,
)
from streamenc_kernels.compiled.vectormath import inner

f32 = np.float32
ROWS, OUT, INSIDE, MAIN_ROWS = Field.ROWS, Field.OUT, Field.INSIDE, Field.MAIN_ROWS
X, X_ROW, X_LANE = Field.X, Field.X_ROW, Field.X_LANE
Y, Y_ROW, Y_LANE = Field.Y, Field.Y_ROW, Field.Y_LANE
A, B, C, D, E, F, G = Field.A, Field.B, Field.C, Field.D, Field.E, Field.F, Field.G

FLOAT32 = WeightType.FLOAT32
# Scores lie as (keys, WIDTH queries): rows of keys by a panel that has the queries as columns, and
# then columns of scores, a step along which is a whole row, by panels of values.
_scores_of_12, _scores_of_1 = (make_tile(n, 1, FLOAT32) for n in (12, 1))
_mixed_4, _mixed_1 = (make_tile(n, PANEL // WIDTH, FLOAT32, WIDTH * 4) for n in (4, 1))
SCORE_BYTES, PANEL_BYTES = WIDTH * 4, PANEL * 4


@inner
def chunks_bytes(o):
    """What `attend_chunks` needs for itself."""
    keys = o[F] * o[MAIN_ROWS] + o[G] - o[MAIN_ROWS]
    beside = (o[INSIDE] + 8) * PANEL_BYTES + SCORE_BYTES
    return beside + keys * (SCORE_BYTES + PANEL_BYTES)


@intrinsic
def soften(typing: Any, scores: Any, keys: Any, factors: Any) -> Any:
    """e^(score - the largest of its query), in place of (keys, WIDTH) scores; at `factors` what
    makes a query's sum 1."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, keys, factors = arguments
        end = b.add(scores, b.mul(keys, number(SCORE_BYTES)))

        def through(start: Any, step: Any) -> Any:
            entry, loop, after = b.block, b.append_basic_block("key"), b.append_basic_block("keys")
            b.branch(loop)
            b.position_at_end(loop)
            place, held = b.phi(I64), b.phi(VECTOR)
            new = step(place, held)
            following = b.add(place, number(SCORE_BYTES))
            for phi, before, then in ((place, scores, following), (held, start, new)):
                phi.add_incoming(before, entry)
                phi.add_incoming(then, loop)
            b.cbranch(b.icmp_signed("<", following, end), loop, after)
            b.position_at_end(after)
            return new

        def largest(place: Any, held: Any) -> Any:
            return larger(b, held, b.load(at(b, place, 0), align=SCORE_BYTES))

        most = through(every(-3e38), largest)

        def raised(place: Any, held: Any) -> Any:
            score = b.load(at(b, place, 0), align=SCORE_BYTES)
            power = exp_of(b, b.fsub(score, most))
            b.store(power, at(b, place, 0), align=SCORE_BYTES)
            return b.fadd(held, power)

        total = through(every(0), raised)
        b.store(b.fdiv(every(1), total), at(b, factors, 0), align=SCORE_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@inner
def _score(keys, stride, count, queries, dim, scores):
    m = 0
    while m + 12 <= count:
        _scores_of_12(keys + m * stride, stride, queries, dim, scores + m * SCORE_BYTES)
        m += 12
    while m < count:
        _scores_of_1(keys + m * stride, stride, queries, dim, scores + m * SCORE_BYTES)
        m += 1


@inner
def _panel(values, stride, count, wide, panel):
    """Rows of `wide` numbers as those of a panel."""
    for n in range(count):
        x = carray(pointer(values + n * stride), (wide,), f32)
        y = carray(pointer(panel + n * PANEL_BYTES), (PANEL,), f32)
        for i in range(wide):
            y[i] = x[i]
        for i in range(wide, PANEL):
            y[i] = f32(0)


@inner
def attend_chunks(o, lanes, first, last, scratch):
    """Parts are heads of lanes, OUT of each lane, INSIDE channels each.

    x holds queries, keys and values of all heads, one behind the other, for spans of G positions:
    MAIN_ROWS of a chunk, and those that are computed along with it. All queries of a span see its
    own positions and the chunks that a ring of F slots holds, in which its chunk takes the place of
    the oldest one. A the numbers of the first chunks, int64 of each lane; keys come at B and go to
    C, values come at D and go to E, (lanes, heads, F * MAIN_ROWS, INSIDE); where they come and go
    may be the same.
    """
    heads, dim, chunk, span, slots = o[OUT], o[INSIDE], o[MAIN_ROWS], o[G], o[F]
    wide, size, beside = heads * dim * 4, dim * 4, span - chunk
    ring = slots * chunk
    positions = carray(pointer(o[A]), (lanes,), np.int64)
    factor = f32(1.0 / math.sqrt(dim))
    queries = scratch
    factors = queries + dim * PANEL_BYTES
    sums = factors + SCORE_BYTES
    scores = sums + 8 * PANEL_BYTES
    panel = scores + (ring + beside) * SCORE_BYTES
    for part in range(first, last):
        lane = part // heads
        h = part - lane * heads
        keys, values = o[C] + part * ring * size, o[E] + part * ring * size
        if o[B] != o[C]:
            _copied(o[B] + part * ring * size, keys, ring * dim)
            _copied(o[D] + part * ring * size, values, ring * dim)
        for s in range(o[ROWS] // span):
            x = o[X] + lane * o[X_LANE] + s * span * o[X_ROW] + h * size
            y = o[Y] + lane * o[Y_LANE] + s * span * o[Y_ROW] + h * size
            number = positions[lane] + s
            own = number % slots * chunk * size
            for t in range(chunk):
                _copied(x + t * o[X_ROW] + wide, keys + own + t * size, dim)
                _copied(x + t * o[X_ROW] + 2 * wide, values + own + t * size, dim)
            held = min(number + 1, slots) * chunk
            more_keys = x + chunk * o[X_ROW] + wide
            # Values of one panel are read where they lie.
            in_place = dim == PANEL and values % SCORE_BYTES == 0
            for start in range(0, span, WIDTH):
                count = min(WIDTH, span - start)
                for i in range(dim):
                    q = carray(pointer(queries + i * PANEL_BYTES), (WIDTH,), f32)
                    for t in range(WIDTH):
                        q[t] = f32(0)
                for t in range(count):
                    q = carray(pointer(x + (start + t) * o[X_ROW]), (dim,), f32)
                    for i in range(dim):
                        place = queries + i * PANEL_BYTES + t * 4
                        carray(pointer(place), (1,), f32)[0] = q[i] * factor
                _score(keys, size, held, queries, dim, scores)
                if beside:
                    _score(more_keys, o[X_ROW], beside, queries, dim, scores + held * SCORE_BYTES)
                soften(scores, held + beside, factors)
                for begin in range(0, dim, PANEL):
                    part_wide = min(PANEL, dim - begin)
                    here, more = values, panel
                    if not in_place:
                        _panel(values + begin * 4, size, held, part_wide, panel)
                        here, more = panel, panel + held * PANEL_BYTES
                    if beside:
                        _panel(more_keys + wide + begin * 4, o[X_ROW], beside, part_wide, more)
                    t = 0
                    while t < count:
                        done = 4 if t + 4 <= count else 1
                        _mix(scores + t * 4, here, held, sums, done)
                        if beside:
                            rest = sums + 4 * PANEL_BYTES
                            _mix(scores + held * SCORE_BYTES + t * 4, more, beside, rest, done)
                        for i in range(done):
                            f = carray(pointer(factors + (t + i) * 4), (1,), f32)[0]
                            place = y + (start + t + i) * o[Y_ROW] + begin * 4
                            target = carray(pointer(place), (part_wide,), f32)
                            r = carray(pointer(sums), (8, PANEL), f32)
                            if beside:
                                for n in range(part_wide):
                                    target[n] = (r[i, n] + r[4 + i, n]) * f
                            else:
                                for n in range(part_wide):
                                    target[n] = r[i, n] * f
                        t += done


@inner
def _mix(scores, values, keys, sums, rows):
    if rows == 4:
        _mixed_4(scores, 4, values, keys, sums)
    else:
        _mixed_1(scores, 4, values, keys, sums)


@inner
def _copied(source, target, count):
    x = carray(pointer(source), (count,), f32)
    y = carray(pointer(target), (count,), f32)
    for i in range(count):
        y[i] = x[i]
