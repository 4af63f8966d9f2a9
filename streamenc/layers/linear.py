"""A linear layer that is fast for the few rows of a live step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamenc.layers.streamed import Exportable, Prepared
from streamenc_kernels import pack_linear, packed_linear


class Linear(Prepared, Exportable):
    """(..., in) -> (..., out); looks at each position alone.

    rows  How many positions a live step has.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = False, rows: int = 2
    ) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._packed: Tensor | None = None

    def prepare(self) -> None:
        self._packed = pack_linear(self.weight, self.rows)

    def for_export(self) -> None:
        super().for_export()
        self._packed = None  # a runtime packs by itself

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight, self._packed, self.bias)
