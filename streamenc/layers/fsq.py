"""Finite scalar quantisation: each channel is rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """A fixed grid instead of codebooks (Mentzer et al., arXiv 2309.15505, appendix A.1).

    Channel i is squashed by tanh to the span of its `levels[i]` values and rounded. The code is the
    number that these digits make, the first channel the lowest: 0 to `entries` - 1. Stateless: each
    vector is quantised alone, in float32 at least.
    """

    # The published code widens the span by this part, so that both ends can be reached.
    MARGIN = 1e-3

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.entries = math.prod(self.levels)
        self._columns: dict[Hashable, Tensor] = {}

    def encode(self, z: Tensor) -> Tensor:
        """(batch, channels, ...) -> codes (batch, 1, ...) int64."""
        digits = self.bounded(z).round().long() + self._column(z, self._halves())
        places = self._column(z, self._places())
        return (digits * places).sum(dim=1, keepdim=True)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (batch, 1, ...) -> the grid's vectors (batch, channels, ...), in [-1, 1], float32.

        Even counts of levels have no value at 1, as published.
        """
        halves = self._column(codes, self._halves())
        digits = codes // self._column(codes, self._places()) % self._column(codes, self.levels)
        return (digits - halves).float() / halves

    def bounded(self, z: Tensor) -> Tensor:
        """What is rounded: (batch, channels, ...), float32 at least."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        half = [(n - 1) * (1 + self.MARGIN) / 2 for n in self.levels]
        offset = [0.0 if n % 2 else 0.5 for n in self.levels]
        shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
        span, centre = self._column(z, half, z.dtype), self._column(z, offset, z.dtype)
        return (z + self._column(z, shift, z.dtype)).tanh() * span - centre

    def _halves(self) -> list[int]:
        return [n // 2 for n in self.levels]

    def _places(self) -> list[int]:
        return [math.prod(self.levels[:i]) for i in range(len(self.levels))]

    def _column(
        self, like: Tensor, values: Sequence[float], dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """One value for each channel, along axis 1 of `like`."""
        key = (tuple(values), dtype, like.device)
        if key not in self._columns:
            # Kept, as a copy to a GPU at each call would wait for it, and cannot be captured.
            with torch.inference_mode(False):
                self._columns[key] = torch.tensor(values, dtype=dtype, device=like.device)
        return self._columns[key].view(-1, *([1] * (like.ndim - 2)))
