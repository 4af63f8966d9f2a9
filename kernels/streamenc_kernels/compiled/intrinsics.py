"""What numba has no words for: addresses, and numbers that threads share."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, BYTE = ir.FloatType(), ir.IntType(8)
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


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
def bits_of_float(typing: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.bitcast(arguments[0], I32)

    return types.int32(types.float32), generate


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
