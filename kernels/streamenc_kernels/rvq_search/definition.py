"""What `rvq_search` means, in plain torch, and the quantisers that it and its kernel take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamenc_kernels.packed_linear import packed_linear


class Quantiser(NamedTuple):
    """One residual quantiser and the vectors that it takes.

    x           (rows, dim), the vectors to quantise.
    codebooks   (levels, entries, dim).
    half_norms  (levels, entries), half the squared norm of each entry, computed once.
    levels      How many levels to search; all where None.
    packed      Each codebook as `pack_linear` packs it, for few rows; None computes plainly.
    """

    x: Tensor
    codebooks: Tensor
    half_norms: Tensor
    levels: int | None = None
    packed: Sequence[Tensor | None] | None = None

    @property
    def depth(self) -> int:
        """Levels to search."""
        return self.codebooks.shape[0] if self.levels is None else self.levels


def rvq_search_torch(
    quantisers: Sequence[Quantiser], *, sums: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The definition of `rvq_search`, and what runs on the CPU."""
    codes: list[Tensor] = []
    totals: list[Tensor] = []
    for quantiser in quantisers:
        residual = quantiser.x.to(quantiser.codebooks.dtype)
        total = torch.zeros_like(residual) if sums else residual
        for level in range(quantiser.depth):
            book, half_norm = quantiser.codebooks[level], quantiser.half_norms[level]
            packed = quantiser.packed[level] if quantiser.packed else None
            if packed is not None:
                distance = half_norm - packed_linear(residual, book, packed)
            else:
                distance = torch.addmm(half_norm, residual, book.t(), alpha=-1)
            nearest = distance.argmin(dim=1)
            codes.append(nearest)
            last = level + 1 == quantiser.depth
            if last and not sums:
                break
            entry = book.index_select(0, nearest)
            if sums:
                total = total + entry
            if not last:
                residual = residual - entry
        if sums:
            totals.append(total)
    if not codes:
        x = quantisers[0].x
        return torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device), totals
    return torch.stack(codes, dim=1), totals
