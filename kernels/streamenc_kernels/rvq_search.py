"""Residual vector quantisation: the nearest entry of each codebook in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamenc_kernels.packed_linear import packed_linear


def rvq_search(
    x: Tensor,
    codebooks: Tensor,
    half_norms: Tensor,
    levels: int | None = None,
    packed: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Codes of the residual search, level by level.

    Level k picks argmin_i |r - E_k[i]|^2 = argmin_i (|E_k[i]|^2 / 2 - r . E_k[i]), then r := r -
    E_k[i]. Distances are computed in the codebooks' dtype (float32 for users: a bfloat16 product
    flips about one code in a hundred per level); ties go to the lowest index.

    x           (rows, dim), the vectors to quantise.
    codebooks   (levels, entries, dim).
    half_norms  (levels, entries), half the squared norm of each entry, computed once.
    levels      How many levels to search; all where None.
    packed      Each codebook as `pack_linear` packs it, for few rows; None computes plainly.
    Returns (rows, levels) int64.
    """
    if x.ndim != 2 or codebooks.ndim != 3 or x.shape[1] != codebooks.shape[2]:
        raise ValueError(
            f"x {tuple(x.shape)} and codebooks {tuple(codebooks.shape)} do not fit: "
            "wanted (rows, dim) and (levels, entries, dim)"
        )
    count = codebooks.shape[0] if levels is None else levels
    if not 0 <= count <= len(codebooks):
        raise ValueError(f"{count} levels of {len(codebooks)} codebooks")
    if not count:
        return torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device)
    codes = []
    residual = x.to(codebooks.dtype)
    for level, (book, half_norm) in enumerate(zip(codebooks, half_norms, strict=True)):
        if packed and packed[level] is not None:
            distance = half_norm - packed_linear(residual, book, packed[level])
        else:
            distance = torch.addmm(half_norm, residual, book.t(), alpha=-1)
        nearest = distance.argmin(dim=1)
        codes.append(nearest)
        if len(codes) == count:
            break
        residual = residual - book.index_select(0, nearest)
    return torch.stack(codes, dim=1)
