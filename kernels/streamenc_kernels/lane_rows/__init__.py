"""What a step leaves in the states of its lanes, written there in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.lane_rows.definition import write_rows_torch


def write_rows(
    pools: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    active: Tensor | None = None,
    lanes: Tensor | None = None,
    implementation: Implementation | None = None,
) -> None:
    """pools[i][lanes[b]] = values[i][b] for all i, and all b that are active.

    pools           (all lanes, ...) each, of any types; a lane's numbers lie one after the other.
    values          (batch, ...) each, with the type and the shape of its pool behind the lane, in
                    any order in memory. None is part of a pool.
    active          (batch,) bool: what else there is stays, to the bit. None: all are.
    lanes           (batch,) int64: where each row goes; several may go to one that nobody reads.
                    None: row b goes to lane b.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Raises ValueError, or torch's RuntimeError, for shapes that do not fit, and RuntimeError for a
    choice that cannot run.
    """
    if not pools:
        return
    device = pools[0].device
    if takes_triton("write_rows", device, implementation, lambda: cannot_write(pools)):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.lane_rows.triton import write

        _check(pools, values, active, lanes)  # torch's operators do so themselves
        write(pools, values, active, lanes)
    else:
        write_rows_torch(pools, values, active=active, lanes=lanes)


def cannot_write(pools: Sequence[Tensor]) -> str:
    """Why the Triton kernel cannot write to `pools`; "" where it can."""
    for pool in pools:
        if pool.is_complex():
            return f"a pool is {pool.dtype}"
        if not pool[0].is_contiguous():
            return f"a lane of a pool {tuple(pool.shape)} does not lie in one piece"
    return cannot_triton(pools[0].device)


def _check(
    pools: Sequence[Tensor],
    values: Sequence[Tensor],
    active: Tensor | None,
    lanes: Tensor | None,
) -> None:
    if len(pools) != len(values):
        raise ValueError(f"{len(pools)} pools and {len(values)} values; wanted one for each")
    for pool, value in zip(pools, values, strict=True):
        fits = len(value) == len(values[0]) and (lanes is not None or len(pool) == len(value))
        if pool.shape[1:] != value.shape[1:] or pool.dtype != value.dtype or not fits:
            raise ValueError(
                f"values {tuple(value.shape)} of {value.dtype} do not fit a pool "
                f"{tuple(pool.shape)} of {pool.dtype}: wanted (batch, ...) and (lanes, ...), of "
                "one type, and as many lanes as rows where no lanes are given"
            )
    for name, rows in (("active", active), ("lanes", lanes)):
        if rows is not None and values and rows.shape != (len(values[0]),):
            raise ValueError(f"{name} is {tuple(rows.shape)}; wanted ({len(values[0])},)")
