"""The Triton kernel of `compress_spectrum`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 256  # of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def compressed(real: Tensor, imag: Tensor, exponent: float, silence: float) -> Tensor:
    """As `compress_spectrum`."""
    bins = real.shape[-1]
    # One row for each window; views, as both parts lie in one complex tensor.
    rows, other = real.flatten(0, -2), imag.flatten(0, -2)
    y = real.new_empty(*real.shape[:-1], 3 * bins)
    # Triton launches on the current device.
    with torch.cuda.device_of(real):
        compress_spectrum_kernel[(triton.cdiv(rows.numel(), NUMBERS),)](
            rows,
            other,
            y,
            rows.numel(),
            silence,
            bins,
            *rows.stride(),
            *other.stride(),
            HALF_EXPONENT=exponent / 2,
            NUMBERS=NUMBERS,
            **OPTIONS,
        )
    return y


@triton.jit
def compress_spectrum_kernel(
    real,
    imag,
    y,
    total,
    silence,
    bins,
    real_row,
    real_bin,
    imag_row,
    imag_bin,
    HALF_EXPONENT: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Bins one after the other. The power is taken in float64: a GPU's own logarithm in float32
    would be off by 1e-6 at silence."""
    at = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    there = at < total
    row = at // bins
    column = at % bins
    a = tl.load(real + row * real_row + column * real_bin, mask=there, other=0.0)
    b = tl.load(imag + row * imag_row + column * imag_bin, mask=there, other=0.0)
    power = (a * a + b * b + silence).to(tl.float64)
    half = tl.full((NUMBERS,), HALF_EXPONENT, tl.float64)
    octaves = tl.log2(power)
    loudness = tl.exp2(half * octaves)
    scale = tl.exp2((half - 0.5) * octaves).to(tl.float32)
    out = y + row * 3 * bins + column
    tl.store(out, a * scale, mask=there)
    tl.store(out + bins, b * scale, mask=there)
    tl.store(out + 2 * bins, loudness.to(tl.float32), mask=there)
