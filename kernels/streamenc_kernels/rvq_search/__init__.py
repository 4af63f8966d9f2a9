"""Residual vector quantisation: the nearest entry of each codebook in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.rvq_search.definition import Quantiser, rvq_search_torch

# The kernel counts within the codebooks in 32 bits.
MAX_NUMBERS = 2**31 - 1
# It loads so many bytes at once.
ALIGNMENT = 16


def rvq_search(
    quantisers: Sequence[Quantiser],
    *,
    sums: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Codes of the residual search, level by level, of quantisers that stand side by side.

    Level k picks argmin_i |r - E_k[i]|^2 = argmin_i (|E_k[i]|^2 / 2 - r . E_k[i]), then r := r -
    E_k[i]. Distances are computed in the codebooks' dtype (float32 for users: a bfloat16 product
    flips about one code in a hundred per level); ties go to the lowest index. The kernel's codes
    are those of distances in float64 to what is left in float32.

    quantisers      One, or several for the same rows, as Mimi's semantic and acoustic.
    sums            Whether the quantised vectors are wanted too.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns codes (rows, levels of all quantisers) int64, one quantiser after the other, and for
    each the sum of its entries (rows, dim) in the codebooks' dtype, or no sums at all.
    Raises ValueError for shapes that do not fit, RuntimeError for a choice that cannot run.
    """
    _check(quantisers)
    if takes_triton(
        "rvq_search", quantisers[0].x.device, implementation, lambda: cannot_search(quantisers)
    ):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.rvq_search.triton import search

        return search(quantisers, sums=sums)
    return rvq_search_torch(quantisers, sums=sums)


def cannot_search(quantisers: Sequence[Quantiser]) -> str:
    """Why the Triton kernel cannot run; "" where it can."""
    return cannot_triton(quantisers[0].x.device) or _misfit(quantisers)


def _misfit(quantisers: Sequence[Quantiser]) -> str:
    first = quantisers[0]
    if len(quantisers) > 2:
        return f"{len(quantisers)} quantisers; it takes one or two"
    for quantiser in quantisers:
        if quantiser.x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"the vectors are {quantiser.x.dtype}"
        if quantiser.x.dtype != first.x.dtype:
            return f"the vectors are {first.x.dtype} and {quantiser.x.dtype}"
        if quantiser.codebooks.shape[1:] != first.codebooks.shape[1:]:
            return "the quantisers differ in entries or dim"
        if quantiser.codebooks.numel() > MAX_NUMBERS:
            return f"{quantiser.codebooks.numel()} numbers in codebooks; it counts to {MAX_NUMBERS}"
        for tensor in (quantiser.codebooks, quantiser.half_norms):
            if tensor.dtype != torch.float32:
                return f"the codebooks are {tensor.dtype}; it takes float32"
            if not tensor.is_contiguous():
                return "the codebooks are not contiguous"
        for tensor in (quantiser.x, quantiser.codebooks, quantiser.half_norms):
            if tensor.data_ptr() % ALIGNMENT:
                return f"a tensor begins at no multiple of {ALIGNMENT} bytes"
    return ""


def _check(quantisers: Sequence[Quantiser]) -> None:
    if not quantisers:
        raise ValueError("no codebooks: rvq_search wants one quantiser or more")
    for quantiser in quantisers:
        x, codebooks = quantiser.x, quantiser.codebooks
        if x.ndim != 2 or codebooks.ndim != 3 or x.shape[1] != codebooks.shape[2]:
            raise ValueError(
                f"x {tuple(x.shape)} and codebooks {tuple(codebooks.shape)} do not fit: "
                "wanted (rows, dim) and (levels, entries, dim)"
            )
        if quantiser.half_norms.shape != codebooks.shape[:2]:
            raise ValueError(
                f"half_norms {tuple(quantiser.half_norms.shape)} do not fit: "
                f"wanted {tuple(codebooks.shape[:2])}"
            )
        if not 0 <= quantiser.depth <= len(codebooks):
            raise ValueError(f"{quantiser.depth} levels of {len(codebooks)} codebooks")
        if x.shape[0] != quantisers[0].x.shape[0]:
            raise ValueError(
                f"{quantisers[0].x.shape[0]} and {x.shape[0]} rows: all quantise the same frames"
            )
        if (
            not x.device
            == codebooks.device
            == quantiser.half_norms.device
            == quantisers[0].x.device
        ):
            raise ValueError("x, codebooks and half_norms are on different devices")
