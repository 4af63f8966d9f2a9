"""Tiles of products, and what is done to their outputs, as vectors: loops that numba is left to
turn into such check for overlaps and odd ends, which takes longer than the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from streamenc_kernels.compiled.instruction import PANEL, Activation, WeightType
from streamenc_kernels.compiled.intrinsics import BYTE, FLOAT, I16, I32, I64

# Floats of a vector: one of AVX-512, two of AVX, four of NEON; LLVM splits it.
WIDTH = 16
VECTOR = ir.VectorType(FLOAT, WIDTH)
INTEGERS = ir.VectorType(I32, WIDTH)
# So far ahead of what a tile of few rows reads, its weights are asked for.
AHEAD_BYTES = 4096
UNROLLED = 4


def number(value: int) -> Any:
    return ir.Constant(I64, value)


def every(value: float) -> Any:
    return ir.Constant(VECTOR, [float(value)] * WIDTH)


def at(b: Any, address: Any, offset: int, kind: Any = VECTOR) -> Any:
    return b.inttoptr(b.add(address, number(offset)), kind.as_pointer())


def call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return call(b, f"llvm.fma.v{WIDTH}f32", VECTOR, x, y, z)


def make_tile(rows: int, vectors: int, kind: WeightType, x_step: int = 4) -> Callable[..., None]:
    """A product of `rows` rows with `vectors` * WIDTH outputs of a panel.

    The function takes addresses and strides in bytes: (x, x_stride, weights, inside, sums), and
    leaves (rows, vectors * WIDTH) float32 at `sums`. Each sum is made in the order of `inside`, so
    that it does not depend on how many rows a tile has. The numbers of a row of x lie `x_step`
    bytes apart.
    """
    stored, size = (FLOAT, 4) if kind is WeightType.FLOAT32 else (I16, 2)
    first = ir.Constant(INTEGERS, [0] * WIDTH)
    undefined = ir.Constant(VECTOR, ir.Undefined)

    def loaded(b: Any, weights: Any, offset: int) -> Any:
        vector = ir.VectorType(stored, WIDTH)
        value = b.load(at(b, weights, offset, vector), align=WIDTH * size)
        if kind is WeightType.INT16:
            value = b.sitofp(b.sext(value, INTEGERS), VECTOR)
        return value

    def advanced(b: Any, x: Any, x_stride: Any, weights: Any, sums: Any, steps: int) -> Any:
        """The sums after some steps along `inside`."""
        for step in range(steps):
            start = step * PANEL * size
            parts = [loaded(b, weights, start + p * WIDTH * size) for p in range(vectors)]
            here, new = x, []
            for index in range(rows):
                value = b.load(at(b, here, x_step * step, FLOAT), align=4)
                value = b.insert_element(undefined, value, ir.Constant(I32, 0))
                spread = b.shuffle_vector(value, undefined, first)
                new.append([fma(b, parts[p], spread, sums[index][p]) for p in range(vectors)])
                if index + 1 < rows:
                    here = b.add(here, x_stride)
            sums = new
        if rows <= 2 or kind is WeightType.INT16:
            for line in range(0, steps * PANEL * size, 64):
                if rows > 2 or line % (PANEL * size) < vectors * WIDTH * size:
                    ahead = at(b, weights, AHEAD_BYTES + line, BYTE)
                    how = (ir.Constant(I32, n) for n in (0, 3, 1))
                    call(b, "llvm.prefetch.p0", ir.VoidType(), ahead, *how)
        return sums

    def looped(
        b: Any, count: Any, x: Any, x_stride: Any, weights: Any, sums: Any, steps: int
    ) -> Any:
        """`count` times `steps` steps, possibly none."""
        entry = b.block
        loop, end = b.append_basic_block("inside"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed(">", count, number(0)), loop, end)
        b.position_at_end(loop)
        left, xs, ws = b.phi(I64), b.phi(I64), b.phi(I64)
        held = [[b.phi(VECTOR) for _ in range(vectors)] for _ in range(rows)]
        new = advanced(b, xs, x_stride, ws, held, steps)
        following = b.sub(left, number(1))
        x_next, w_next = b.add(xs, number(x_step * steps)), b.add(ws, number(PANEL * size * steps))
        turns = [(left, count, following), (xs, x, x_next), (ws, weights, w_next)]
        for r in range(rows):
            turns += [(held[r][p], sums[r][p], new[r][p]) for p in range(vectors)]
        for phi, before, after in turns:
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", following, number(0)), loop, end)
        b.position_at_end(end)

        def either(before: Any, after: Any) -> Any:
            phi = b.phi(before.type)
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
            return phi

        x, weights = either(x, x_next), either(weights, w_next)
        sums = [[either(sums[r][p], new[r][p]) for p in range(vectors)] for r in range(rows)]
        return x, weights, sums

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, weights, inside, target = arguments
        sums: Any = [[every(0) for _ in range(vectors)] for _ in range(rows)]
        whole, rest = b.sdiv(inside, number(UNROLLED)), b.srem(inside, number(UNROLLED))
        x, weights, sums = looped(b, whole, x, x_stride, weights, sums, UNROLLED)
        x, weights, sums = looped(b, rest, x, x_stride, weights, sums, 1)
        for r in range(rows):
            for p in range(vectors):
                place = at(b, target, (r * vectors + p) * WIDTH * 4)
                b.store(sums[r][p], place, align=WIDTH * 4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing: Any, x: Any, x_stride: Any, weights: Any, inside: Any, sums: Any) -> Any:
        return types.void(*[types.int64] * 5), generate

    return tile


def make_row_end(vectors: int) -> Callable[..., None]:
    """What comes behind the sums of a row: y = sums * scale + bias + residual; z = activation(y).

    The function takes addresses, 0 for what is not wanted: (sums, scale, bias, residual, y, z,
    activation), each of `vectors` * WIDTH float32.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        sums, scale, bias, residual, y, z, activation = arguments
        held = [cgutils.alloca_once(b, VECTOR) for _ in range(vectors)]
        for p in range(vectors):
            b.store(b.load(at(b, sums, p * WIDTH * 4), align=4), held[p])

        def given(address: Any) -> Any:
            return b.if_then(b.icmp_signed("!=", address, number(0)))

        for address, combine in ((scale, b.fmul), (bias, b.fadd), (residual, b.fadd)):
            with given(address):
                for p in range(vectors):
                    other = b.load(at(b, address, p * WIDTH * 4), align=4)
                    b.store(combine(b.load(held[p]), other), held[p])
        with given(y):
            for p in range(vectors):
                b.store(b.load(held[p]), at(b, y, p * WIDTH * 4), align=4)
        with given(z):
            for kind, function in _FUNCTIONS.items():
                with b.if_then(b.icmp_signed("==", activation, number(int(kind)))):
                    for p in range(vectors):
                        b.store(function(b, b.load(held[p])), at(b, z, p * WIDTH * 4), align=4)
        return context.get_dummy_value()

    @intrinsic
    def row_end(
        typing: Any, sums: Any, scale: Any, bias: Any, residual: Any, y: Any, z: Any, kind: Any
    ) -> Any:
        return types.void(*[types.int64] * 7), generate

    return row_end


def make_dots(vectors: int) -> Callable[..., None]:
    """Products of one row with each of many that lie one behind the other.

    The function takes addresses: (x, rows, count, y), rows of `vectors` * WIDTH float32; it leaves
    `count` numbers at y, at least one.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, rows, count, y = arguments
        own = [b.load(at(b, x, p * WIDTH * 4), align=4) for p in range(vectors)]
        total = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        name = f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        reduce = cgutils.get_or_insert_function(b.module, total, name)
        entry, loop, end = b.block, b.append_basic_block("dots"), b.append_basic_block("dotted")
        b.branch(loop)
        b.position_at_end(loop)
        n, row, place = b.phi(I64), b.phi(I64), b.phi(I64)
        summed = every(0)
        for p in range(vectors):
            other = b.load(at(b, row, p * WIDTH * 4), align=4)
            summed = fma(b, own[p], other, summed)
        one = b.call(reduce, [ir.Constant(FLOAT, 0.0), summed], fastmath=("reassoc", "nsz"))
        b.store(one, at(b, place, 0, FLOAT), align=4)
        turns = (
            (n, count, b.sub(n, number(1))),
            (row, rows, b.add(row, number(vectors * WIDTH * 4))),
            (place, y, b.add(place, number(4))),
        )
        for phi, before, after in turns:
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", turns[0][2], number(0)), loop, end)
        b.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def dots(typing: Any, x: Any, rows: Any, count: Any, y: Any) -> Any:
        return types.void(*[types.int64] * 4), generate

    return dots


# The functions of vectormath, on vectors.


def smaller(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered("<", y, x), y, x)


def larger(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", y, x), y, x)


def exp_of(b: Any, x: Any) -> Any:
    x = larger(b, smaller(b, x, every(88)), every(-87))
    n = call(b, f"llvm.floor.v{WIDTH}f32", VECTOR, fma(b, x, every(1.4426950408889634), every(0.5)))
    r = fma(b, n, every(-0.693359375), x)
    r = fma(b, n, every(2.1219444005469057e-4), r)
    p = every(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = fma(b, p, r, every(term))
    exponent = b.add(b.fptosi(n, INTEGERS), ir.Constant(INTEGERS, [127] * WIDTH))
    power = b.shl(exponent, ir.Constant(INTEGERS, [23] * WIDTH))
    return b.fmul(p, b.bitcast(power, VECTOR))


def _elu(b: Any, x: Any) -> Any:
    below = b.fsub(exp_of(b, smaller(b, x, every(0))), every(1))
    return b.select(b.fcmp_ordered("<", x, every(0)), below, x)


def _sigmoid(b: Any, x: Any) -> Any:
    return b.fdiv(every(1), b.fadd(every(1), exp_of(b, b.fsub(every(0), x))))


def _silu(b: Any, x: Any) -> Any:
    return b.fmul(x, _sigmoid(b, x))


def _gelu(b: Any, x: Any) -> Any:
    scaled = b.fmul(x, every(0.7071067811865476))
    size = call(b, f"llvm.fabs.v{WIDTH}f32", VECTOR, scaled)
    t = b.fdiv(every(1), fma(b, every(0.3275911), size, every(1)))
    p = every(1.061405429)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = fma(b, p, t, every(term))
    tail = exp_of(b, b.fsub(every(0), b.fmul(size, size)))
    y = b.fsub(every(1), b.fmul(b.fmul(p, t), tail))
    y = b.select(b.fcmp_ordered("<", x, every(0)), b.fsub(every(0), y), y)
    return b.fmul(b.fmul(every(0.5), x), b.fadd(every(1), y))


def _gelu_tanh(b: Any, x: Any) -> Any:
    cubed = b.fmul(b.fmul(x, x), b.fmul(x, every(0.044715)))
    return b.fmul(x, _sigmoid(b, b.fmul(every(1.5957691216057308), b.fadd(x, cubed))))


_FUNCTIONS = {
    Activation.NONE: lambda b, x: x,
    Activation.ELU: _elu,
    Activation.GELU: _gelu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.SILU: _silu,
}
