"""The Triton kernel of `rotary_table`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ANGLES = 128  # of a program
# Fused multiply-adds only make it more exact.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def table(position: Tensor, time: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    batch = position.shape[0]
    cos, sin = (
        torch.empty(batch, 1, time, dim // 2, dtype=torch.float32, device=position.device)
        for _ in range(2)
    )
    # Triton launches on the current device.
    with torch.cuda.device_of(position):
        rotary_table_kernel[(triton.cdiv(cos.numel(), ANGLES),)](
            position, cos, sin, cos.numel(), **constants(time, dim, theta), **OPTIONS
        )
    return cos, sin


def constants(time: int, dim: int, theta: float) -> dict[str, int | float]:
    """What a table is compiled for."""
    octaves = 2 * math.log2(theta) / dim
    return {"TIME": time, "HALF": dim // 2, "OCTAVES": octaves, "ANGLES": ANGLES}


@triton.jit
def rotary_table_kernel(
    position,
    cos,
    sin,
    total,
    TIME: tl.constexpr,
    HALF: tl.constexpr,
    OCTAVES: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """Angles one after the other, as they lie in memory, each in float64 up to its quarter turn.

    Frequency i is 2 ** (-i * OCTAVES).
    """
    at = tl.program_id(0) * ANGLES + tl.arange(0, ANGLES)
    there = at < total
    row = at // HALF
    # A plain number would be one of float32.
    octaves = tl.full((ANGLES,), OCTAVES, tl.float64)
    quarters = tl.full((ANGLES,), 0.6366197723675814, tl.float64)  # in an angle of 1: 2 / pi
    quarter = tl.full((ANGLES,), 1.5707963267948966, tl.float64)
    first = tl.load(position + row // TIME, mask=there, other=0)
    turned = (first + row % TIME).to(tl.float64) * tl.exp2(-octaves * (at % HALF).to(tl.float64))
    turned *= quarters
    whole = tl.floor(turned + 0.5)
    x = (turned - whole) * quarter
    # Taylor's series within an eighth of a turn: what they leave out is below 1e-11.
    s = x * x
    sine = x * (1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72 * (1 - s / 110)))))
    cosine = 1 - s / 2 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90 * (1 - s / 132)))))
    step = whole.to(tl.int64) & 3
    swapped = (step & 1) == 1
    c = tl.where(swapped, sine, cosine)
    c = tl.where((step == 1) | (step == 2), -c, c)
    z = tl.where(swapped, cosine, sine)
    z = tl.where(step >= 2, -z, z)
    tl.store(cos + at, c.to(tl.float32), mask=there)
    tl.store(sin + at, z.to(tl.float32), mask=there)
