"""Residual vector quantisation with codebooks that are prepared once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc_kernels import rvq_search


class ResidualVQ(nn.Module):
    """Codebooks (levels, entries, dim), as buffers. Stateless: each frame is quantised alone.

    Kept in float32 at least, whatever the model runs in: distances in half precision flip codes.
    """

    codebooks: Tensor
    half_norms: Tensor

    def __init__(self, levels: int, entries: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.empty(levels, entries, dim))
        self.register_buffer("half_norms", torch.empty(levels, entries), persistent=False)

    def prepare(self) -> None:
        """Computes the norms; called once the codebooks are filled."""
        self.half_norms = 0.5 * (self.codebooks * self.codebooks).sum(dim=-1)

    @property
    def levels(self) -> int:
        return self.codebooks.shape[0]

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """(batch, dim, frames) -> codes (batch, levels, frames) int64."""
        batch, dim, frames = x.shape
        rows = x.transpose(1, 2).reshape(batch * frames, dim)
        codes = rvq_search(rows, self.codebooks, self.half_norms, levels)
        return codes.view(batch, frames, codes.shape[1]).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, levels, frames), the first levels suffice -> (batch, dim, frames)."""
        total = F.embedding(codes[:, 0], self.codebooks[0])
        for level in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, level], self.codebooks[level])
        return total.transpose(1, 2)
