"""Functions of float32 that LLVM turns into vector code: numba's own call libm for each number."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit

from streamenc_kernels.compiled.intrinsics import bits_of_float, float_of_bits

f32, i32 = np.float32, np.int32
# What may be done to floats so that sums become vectors. Not that they are finite: what is not
# stays visible.
LOOSE = {"reassoc", "contract", "nsz", "arcp"}
# Functions that only others here call, and Python never.
inner = partial(
    njit,
    fastmath=LOOSE,
    nogil=True,
    error_model="numpy",
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)()
inlined = partial(njit, fastmath=LOOSE, inline="always")()

LOG2_E = f32(1.4426950408889634)
# ln 2 as the sum of two numbers, of which the first has few bits.
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.1219444005469057e-4)
LOWEST, HIGHEST = f32(-87.0), f32(88.0)


@inlined
def exp(x):
    """e^x, within 2 units in the last place, from -87 to 88."""
    x = min(max(x, LOWEST), HIGHEST)
    n = np.floor(x * LOG2_E + f32(0.5))
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    # Taylor's series to the 7th power, where |r| <= ln 2 / 2: the next term is below 6e-9.
    p = f32(1 / 5040)
    p = p * r + f32(1 / 720)
    p = p * r + f32(1 / 120)
    p = p * r + f32(1 / 24)
    p = p * r + f32(1 / 6)
    p = p * r + f32(0.5)
    p = p * r + f32(1.0)
    p = p * r + f32(1.0)
    return p * float_of_bits((i32(n) + i32(127)) << i32(23))


@inlined
def log(x):
    """The natural logarithm of a normal positive number, within 1e-7 of it or of 1."""
    # x = 2^n * m, where m lies between sqrt(1/2) and sqrt(2).
    bits = i32(bits_of_float(x) - i32(0x3F3504F3))
    n = f32(i32(bits >> i32(23)))
    m = float_of_bits(i32(i32(bits & i32(0x7FFFFF)) + i32(0x3F3504F3)))
    # log m = 2 artanh(s) by its series, where |s| <= 0.172: the next term is below 8e-10.
    s = (m - f32(1)) / (m + f32(1))
    z = s * s
    p = f32(2 / 9)
    p = p * z + f32(2 / 7)
    p = p * z + f32(2 / 5)
    p = p * z + f32(2 / 3)
    p = p * z + f32(2)
    return n * LN2_HIGH + (n * LN2_LOW + s * p)


@inlined
def erf(x):
    """Within 5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    a = abs(x)
    t = f32(1) / (f32(1) + f32(0.3275911) * a)
    p = f32(1.061405429)
    p = p * t + f32(-1.453152027)
    p = p * t + f32(1.421413741)
    p = p * t + f32(-0.284496736)
    p = p * t + f32(0.254829592)
    y = f32(1) - p * t * exp(-a * a)
    return y if x >= f32(0) else -y


@inlined
def sigmoid(x):
    return f32(1) / (f32(1) + exp(-x))


@inlined
def tanh(x):
    return f32(2) * sigmoid(x + x) - f32(1)


@inlined
def elu(x):
    return max(x, exp(min(x, f32(0))) - f32(1))


@inlined
def gelu(x):
    return f32(0.5) * x * (f32(1) + erf(x * f32(0.7071067811865476)))


@inlined
def gelu_tanh(x):
    return x * sigmoid(f32(1.5957691216057308) * (x + f32(0.044715) * x * x * x))


@inlined
def silu(x):
    return x * sigmoid(x)
