"""What numba has no words for: tiles of products on vectors, addresses, and atomic numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from streamenc_kernels.compiled.instruction import PANEL, WeightType

FLOAT, BYTE = ir.FloatType(), ir.IntType(8)
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Floats of a vector: one of AVX-512, two of AVX, four of NEON; LLVM splits it.
WIDTH = 16
# So far ahead of what a tile of few rows reads, its weights are asked for.
AHEAD_BYTES = 4096


def make_tile(rows: int, vectors: int, kind: WeightType) -> Callable[..., None]:
    """A product of `rows` rows with `vectors` * WIDTH outputs of a panel.

    The function takes addresses and strides in bytes: (x, x_stride, weights, inside, sums), and
    leaves (rows, vectors * WIDTH) float32 at `sums`. Each sum is made in the order of `inside`, so
    that it does not depend on how many rows a tile has.
    """
    stored, size = (FLOAT, 4) if kind is WeightType.FLOAT32 else (I16, 2)

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, weights, inside, sums = arguments
        vector = ir.VectorType(FLOAT, WIDTH)
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32"
        )
        number: Callable[[int], Any] = lambda value: ir.Constant(I64, value)  # noqa: E731
        undefined = ir.Constant(vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH)
        entry, loop, end = (
            b.block,
            b.append_basic_block("inside"),
            b.append_basic_block("after"),
        )
        b.branch(loop)
        b.position_at_end(loop)
        at, w, row = b.phi(I64), b.phi(I64), b.phi(I64)
        held = [[b.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        for phi, start in ((at, number(0)), (w, weights), (row, x)):
            phi.add_incoming(start, entry)
        loaded = []
        for part in range(vectors):
            kept = ir.VectorType(stored, WIDTH).as_pointer()
            value = b.load(
                b.inttoptr(b.add(w, number(part * WIDTH * size)), kept), align=WIDTH * size
            )
            if kind is WeightType.INT16:
                value = b.sitofp(b.sext(value, ir.VectorType(I32, WIDTH)), vector)
            loaded.append(value)
        if rows <= 2:
            pointer = BYTE.as_pointer()
            fetch = cgutils.get_or_insert_function(
                b.module,
                ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]),
                "llvm.prefetch.p0",
            )
            for line in range(0, vectors * WIDTH * size, 64):
                ahead = b.inttoptr(b.add(w, number(AHEAD_BYTES + line)), pointer)
                b.call(fetch, [ahead, *(ir.Constant(I32, n) for n in (0, 3, 1))])
        here, sums_now = row, []
        for index in range(rows):
            value = b.load(b.inttoptr(here, FLOAT.as_pointer()), align=4)
            spread = b.shuffle_vector(
                b.insert_element(undefined, value, ir.Constant(I32, 0)), undefined, first
            )
            sums_now.append(
                [b.call(fma, [loaded[p], spread, held[index][p]]) for p in range(vectors)]
            )
            if index + 1 < rows:
                here = b.add(here, x_stride)
        following = b.add(at, number(1))
        for phi, value in (
            (at, following),
            (w, b.add(w, number(PANEL * size))),
            (row, b.add(row, number(4))),
        ):
            phi.add_incoming(value, loop)
        zero = ir.Constant(vector, [0.0] * WIDTH)
        for index in range(rows):
            for part in range(vectors):
                held[index][part].add_incoming(zero, entry)
                held[index][part].add_incoming(sums_now[index][part], loop)
        b.cbranch(b.icmp_signed("<", following, inside), loop, end)
        b.position_at_end(end)
        for index in range(rows):
            for part in range(vectors):
                place = b.add(sums, number((index * vectors + part) * WIDTH * 4))
                b.store(
                    sums_now[index][part], b.inttoptr(place, vector.as_pointer()), align=WIDTH * 4
                )
        return context.get_dummy_value()

    @intrinsic
    def tile(typing: Any, x: Any, x_stride: Any, weights: Any, inside: Any, sums: Any) -> Any:
        return types.void(*[types.int64] * 5), generate

    return tile


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def load_number(typing: Any, address: Any) -> Any:
    """The number at an address that other threads write to."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.load_atomic(b.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def store_number(typing: Any, address: Any, value: Any) -> Any:
    """Writes a number that other threads read, behind all that was written before."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        b.store_atomic(arguments[1], b.inttoptr(arguments[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add_number(typing: Any, address: Any, value: Any) -> Any:
    """Adds to a number that several threads add to; gives what it was before."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        place = b.inttoptr(arguments[0], I64.as_pointer())
        return b.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def exchange_number(typing: Any, address: Any, value: Any) -> Any:
    """Writes a number that several threads write; gives what it was before."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        place = b.inttoptr(arguments[0], I64.as_pointer())
        return b.atomic_rmw("xchg", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def replace_number(typing: Any, address: Any, before: Any, value: Any) -> Any:
    """Writes a number where it is still what it was before; whether it was."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        place = b.inttoptr(arguments[0], I64.as_pointer())
        was = b.cmpxchg(place, arguments[1], arguments[2], "acq_rel", "acquire")
        return b.extract_value(was, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


def _relax() -> str:
    """The processor's hint that a thread is waiting; "" where LLVM has no name for it."""
    import platform

    machine = platform.machine().lower()
    return "llvm.x86.sse2.pause" if machine in ("x86_64", "amd64") else ""


RELAX = _relax()
YIELDS = os.name == "posix"


@intrinsic
def relax(typing: Any) -> Any:
    """Waits for some cycles, and lets the core's other thread compute."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if RELAX:
            nothing = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, nothing, RELAX), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing: Any) -> Any:
    """Lets another thread have this core, where one waits for it."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if YIELDS:
            kind = ir.FunctionType(I32, [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate
