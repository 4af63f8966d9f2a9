"""The Triton kernel of `write_rows`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of a program; leaves of a launch, each a branch of the code.
NUMBERS, LEAVES = 1024, 32
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def write(
    pools: Sequence[Tensor],
    values: Sequence[Tensor],
    active: Tensor | None,
    lanes: Tensor | None,
) -> None:
    """As `write_rows`."""
    there = [(p, v) for p, v in zip(pools, values, strict=True) if v.numel()]
    # Triton launches on the current device.
    with torch.cuda.device_of(pools[0]):
        for start in range(0, len(there), LEAVES):
            some = there[start : start + LEAVES]
            sources = [_in_two_axes(value) for _, value in some]
            sizes = tuple(value[0].numel() for _, value in some)
            plan = constants(sizes, [source.shape[2] for source in sources])
            write_rows_kernel[(plan["BEGINS"][-1], sources[0].shape[0])](
                tuple(pool for pool, _ in some),
                tuple(sources),
                tuple(pool.stride(0) for pool, _ in some),
                tuple(source.stride(0) for source in sources),
                tuple(source.stride(1) for source in sources),
                tuple(source.stride(2) for source in sources),
                sources[0] if active is None else active,
                sources[0] if lanes is None else lanes,
                MASKED=active is not None,
                INDEXED=lanes is not None,
                **plan,
                **OPTIONS,
            )


def constants(sizes: Sequence[int], widths: Sequence[int]) -> dict[str, Any]:
    """What leaves of so many numbers a lane, so many of them side by side, are compiled for.

    Programs BEGINS[i] to BEGINS[i + 1] of a lane write leaf i.
    """
    begins = [0]
    for size in sizes:
        begins.append(begins[-1] + triton.cdiv(size, NUMBERS))
    return {
        "SIZES": tuple(sizes),
        "WIDTHS": tuple(widths),
        "BEGINS": tuple(begins),
        "NUMBERS": NUMBERS,
    }


def _in_two_axes(value: Tensor) -> Tensor:
    """(batch, rows, columns): a view where there is one, as of the last columns of a matrix."""
    if value.ndim == 3:
        return value
    if value.ndim > 3 or not value.is_contiguous():
        value = value.contiguous()
    return value.view(len(value), 1, -1)


@triton.jit
def write_rows_kernel(
    pools,
    values,
    pool_lane,
    value_lane,
    value_row,
    value_column,
    active,
    lanes,
    MASKED: tl.constexpr,
    INDEXED: tl.constexpr,
    SIZES: tl.constexpr,
    WIDTHS: tl.constexpr,
    BEGINS: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Some numbers of one leaf of one row of the batch."""
    program = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    writes = True
    if MASKED:
        writes = tl.load(active + row) != 0
    lane = row
    if INDEXED:
        lane = tl.load(lanes + row)
    for leaf in tl.static_range(len(SIZES)):
        if writes & (program >= BEGINS[leaf]) & (program < BEGINS[leaf + 1]):
            at = (program - BEGINS[leaf]) * NUMBERS + tl.arange(0, NUMBERS)
            there = at < SIZES[leaf]
            source = values[leaf] + row * value_lane[leaf]
            source += (at // WIDTHS[leaf]) * value_row[leaf]
            source += (at % WIDTHS[leaf]) * value_column[leaf]
            number = tl.load(source, mask=there)
            tl.store(pools[leaf] + lane * pool_lane[leaf] + at, number, mask=there)
