"""A linear layer that is fast for the few rows of a live step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamenc_kernels import pack_linear, packed_linear


class Linear(nn.Module):
    """(..., in) -> (..., out), without bias; looks at each position alone."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self._packed: Tensor | None = None

    def prepare(self) -> None:
        """Packs the weight; called once it is filled and has its dtype."""
        self._packed = pack_linear(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight, self._packed)
