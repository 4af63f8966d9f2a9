"""The matrix units of a processor: products of tiles of int8, whose sums are exact in int32."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from streamenc_kernels.compiled.intrinsics import BYTE, I32, I64
from streamenc_kernels.compiled.planes.shapes import (
    DIGITS,
    ORDERS,
    TILE_BYTES,
    TILE_ROWS,
    TILE_WIDE,
    WEIGHT_DIGITS,
)
from streamenc_kernels.compiled.tiles import INTEGERS, VECTOR, WIDTH, at, call, every, fma, number

# What is asked for ahead of the weights that are read.
AHEAD_BYTES = 8192
# What a kernel wants to know of a process before it lets it use large registers, as Linux has it.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18
COMPILED = "+amx-int8" in cpu_target.target_context.codegen().magic_tuple()[2]


@cache
def has_units() -> bool:
    """Whether there are matrix units, and the system lets this process use them."""
    if not COMPILED or sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def layout(rows: int) -> np.ndarray[Any, Any]:
    """What `configure` takes: sums and inputs of so many rows, weights of all."""
    made = np.zeros(64, np.uint8)
    made[0] = 1
    for tile in range(8):
        made[16 + 2 * tile] = TILE_WIDE
        made[48 + tile] = TILE_ROWS if tile >= 6 else rows
    return made


def _tile(value: int) -> Any:
    return ir.Constant(BYTE, value)


@intrinsic
def configure(typing: Any, address: Any) -> Any:
    """Gives the tiles their shapes, (64,) bytes as `layout` says them."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if COMPILED:
            call(b, "llvm.x86.ldtilecfg", ir.VoidType(), at(b, arguments[0], 0, BYTE))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typing: Any) -> Any:
    """Leaves the tiles as they are where nobody uses them."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if COMPILED:
            call(b, "llvm.x86.tilerelease", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply(
    typing: Any, x: Any, x_stride: Any, digit: Any, weights: Any, steps: Any, sums: Any
) -> Any:
    """Sums (ORDERS, TILE_ROWS, WIDTH) int32 of some rows with WIDTH outputs.

    x  Rows of int8, `x_stride` bytes apart; the next digit of each lies `digit` bytes behind.
    weights  (steps, WEIGHT_DIGITS, TILE_WIDE // 4, WIDTH, 4) int8.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, digit, weights, steps, sums = arguments
        if not COMPILED:
            return context.get_dummy_value()
        nothing = ir.VoidType()

        def load(tile: int, address: Any, stride: Any) -> None:
            call(b, "llvm.x86.tileloadd64", nothing, _tile(tile), at(b, address, 0, BYTE), stride)

        def add(target: int, left: int, right: int) -> None:
            call(b, "llvm.x86.tdpbssd", nothing, *(_tile(t) for t in (target, left, right)))

        for order in range(ORDERS):
            call(b, "llvm.x86.tilezero", nothing, _tile(order))
        entry, loop, end = b.block, b.append_basic_block("step"), b.append_basic_block("summed")
        b.branch(loop)
        b.position_at_end(loop)
        left, xs, ws = b.phi(I64), b.phi(I64), b.phi(I64)
        for line in range(0, WEIGHT_DIGITS * TILE_BYTES, 64):
            ahead = at(b, ws, AHEAD_BYTES + line, BYTE)
            call(b, "llvm.prefetch.p0", nothing, ahead, *(ir.Constant(I32, n) for n in (0, 3, 1)))
        # Sums 0 to 2, digits of x in 3 to 5, those of the weights in 6 and 7.
        load(6, ws, number(TILE_WIDE))
        place = xs
        for order in range(DIGITS):
            load(3 + order, place, x_stride)
            add(order, 3 + order, 6)
            place = b.add(place, digit)
        load(7, b.add(ws, number(TILE_BYTES)), number(TILE_WIDE))
        add(1, 3, 7)
        add(2, 4, 7)
        following = b.sub(left, number(1))
        for phi, before, after in (
            (left, steps, following),
            (xs, x, b.add(xs, number(TILE_WIDE))),
            (ws, weights, b.add(ws, number(WEIGHT_DIGITS * TILE_BYTES))),
        ):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", following, number(0)), loop, end)
        b.position_at_end(end)
        for order in range(ORDERS):
            target = at(b, sums, order * TILE_BYTES, BYTE)
            call(b, "llvm.x86.tilestored64", nothing, _tile(order), target, number(TILE_WIDE))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def joined(typing: Any, sums: Any, x: Any, x_stride: Any, rows: Any, y: Any) -> Any:
    """(rows, WIDTH) float32 of what `multiply` leaves, times the factor at x of each row."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        sums, x, x_stride, rows, y = arguments
        entry, loop, end = b.block, b.append_basic_block("row"), b.append_basic_block("joined")
        b.branch(loop)
        b.position_at_end(loop)
        left, here, factor, place = (b.phi(I64) for _ in range(4))
        total = every(0)
        for order in range(ORDERS):
            part = b.load(at(b, here, order * TILE_BYTES, INTEGERS), align=WIDTH * 4)
            total = fma(b, total, every(256), b.sitofp(part, VECTOR))
        one = b.load(at(b, factor, 0, VECTOR.element), align=4)
        wide = b.insert_element(ir.Constant(VECTOR, ir.Undefined), one, ir.Constant(I32, 0))
        zeros = ir.Constant(INTEGERS, [0] * WIDTH)
        spread = b.shuffle_vector(wide, ir.Constant(VECTOR, ir.Undefined), zeros)
        b.store(b.fmul(total, spread), at(b, place, 0), align=4)
        following = b.sub(left, number(1))
        for phi, before, after in (
            (left, rows, following),
            (here, sums, b.add(here, number(WIDTH * 4))),
            (factor, x, b.add(factor, x_stride)),
            (place, y, b.add(place, number(WIDTH * 4))),
        ):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", following, number(0)), loop, end)
        b.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def largest_bits(typing: Any, x: Any, vectors: Any) -> Any:
    """The bits of the largest of `vectors` * WIDTH float32 without their signs, as int32: those of
    what is not finite are larger than any number's."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, vectors = arguments
        zeros = ir.Constant(INTEGERS, [0] * WIDTH)
        entry, loop, end = b.block, b.append_basic_block("vector"), b.append_basic_block("found")
        b.branch(loop)
        b.position_at_end(loop)
        left, place, held = b.phi(I64), b.phi(I64), b.phi(INTEGERS)
        bits = b.load(at(b, place, 0, INTEGERS), align=4)
        bits = b.and_(bits, ir.Constant(INTEGERS, [0x7FFFFFFF] * WIDTH))
        most = b.select(b.icmp_signed(">", bits, held), bits, held)
        following = b.sub(left, number(1))
        for phi, before, after in (
            (left, vectors, following),
            (place, x, b.add(place, number(WIDTH * 4))),
            (held, zeros, most),
        ):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", following, number(0)), loop, end)
        b.position_at_end(end)
        return call(b, f"llvm.vector.reduce.smax.v{WIDTH}i32", I32, most)

    return types.int32(types.int64, types.int64), generate


@intrinsic
def write_digits(typing: Any, x: Any, vectors: Any, turn: Any, y: Any, digit: Any) -> Any:
    """The digits of x * turn, int8, the highest at y and each lower one `digit` bytes behind."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, vectors, turn, y, digit = arguments
        undefined = ir.Constant(VECTOR, ir.Undefined)
        wide = b.insert_element(undefined, turn, ir.Constant(I32, 0))
        spread = b.shuffle_vector(wide, undefined, ir.Constant(INTEGERS, [0] * WIDTH))
        entry, loop, end = b.block, b.append_basic_block("vector"), b.append_basic_block("written")
        b.branch(loop)
        b.position_at_end(loop)
        left, place, target = b.phi(I64), b.phi(I64), b.phi(I64)
        scaled = b.fmul(b.load(at(b, place, 0), align=4), spread)
        q = b.fptosi(call(b, f"llvm.rint.v{WIDTH}f32", VECTOR, scaled), INTEGERS)
        bytes_, eight = ir.VectorType(BYTE, WIDTH), ir.Constant(INTEGERS, [8] * WIDTH)
        for order in reversed(range(DIGITS)):
            here = b.add(target, b.mul(digit, number(order)))
            b.store(b.trunc(q, bytes_), at(b, here, 0, bytes_), align=WIDTH)
            q = b.ashr(b.add(q, ir.Constant(INTEGERS, [128] * WIDTH)), eight)
        following = b.sub(left, number(1))
        for phi, before, after in (
            (left, vectors, following),
            (place, x, b.add(place, number(WIDTH * 4))),
            (target, y, b.add(target, number(WIDTH))),
        ):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, loop)
        b.cbranch(b.icmp_signed(">", following, number(0)), loop, end)
        b.position_at_end(end)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate
