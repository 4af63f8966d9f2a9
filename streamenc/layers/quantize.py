"""Residual vector quantisation with codebooks that are prepared once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.streamed import Exact, Exportable, Prepared
from streamenc_kernels import Quantiser, pack_linear, rvq_search

# Up to so many frames at once reading the codebooks is what takes the time.
PACKED_ROWS = 64


class ResidualVQ(Prepared, Exact, Exportable):
    """Codebooks of several levels, and the projection into their space.

    Stateless: each frame is quantised alone. Exact: distances in quantiser precision flip codes.

    codebooks   (levels, entries, dim).
    project_in  (dim, channels) where an encoder quantises vectors of `channels_in`, else None.
    """

    codebooks: Tensor
    half_norms: Tensor

    def __init__(
        self, levels: int, entries: int, dim: int, *, channels_in: int | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.empty(levels, entries, dim))
        self.register_buffer("half_norms", None, persistent=False)
        self._packed: list[Tensor | None] = []
        self.project_in = (
            None if channels_in is None else nn.Parameter(torch.empty(dim, channels_in))
        )

    def prepare(self) -> None:
        self.half_norms = 0.5 * (self.codebooks * self.codebooks).sum(dim=-1)
        self._packed = []

    @property
    def levels(self) -> int:
        return self.codebooks.shape[0]

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """(batch, channels, frames) -> codes (batch, levels, frames) int64."""
        return encode([self], x, [self.levels if levels is None else levels])

    def inputs(self, rows: Tensor, levels: int) -> Quantiser:
        """What `rvq_search` needs for vectors (rows, channels)."""
        rows = rows.to(self.codebooks.dtype)
        if self.project_in is not None:
            rows = F.linear(rows, self.project_in)
        few = not self._exported and rows.shape[0] <= PACKED_ROWS
        if few and not self._packed:
            # Not before somebody encodes: a decoder only looks its entries up.
            self._packed = [pack_linear(book) for book in self.codebooks]
        packed = self._packed if few else None
        return Quantiser(rows, self.codebooks, self.half_norms, levels, packed)

    def decode(self, codes: Tensor) -> Tensor:
        """The sum of their entries: codes (batch, levels, frames) -> (batch, dim, frames).

        The first levels suffice. It is a sum of look-ups only, so that how many frames are decoded
        at once changes not even the last bit.
        """
        total = F.embedding(codes[:, 0], self.codebooks[0])
        for level in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, level], self.codebooks[level])
        return total.transpose(1, 2)


def encode(quantizers: Sequence[ResidualVQ], x: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes of quantisers that take the same frames, one after the other, in one search.

    (batch, channels, frames) -> (batch, sum of levels, frames) int64. A quantiser of which no
    levels are wanted is not asked.
    """
    batch, channels, frames = x.shape
    # One vector after the other in memory: the other way round, products take 5 times longer.
    rows = x.transpose(1, 2).reshape(batch * frames, channels).contiguous()
    if not any(levels):
        return torch.empty(batch, 0, frames, dtype=torch.int64, device=x.device)
    wanted = [(q, count) for q, count in zip(quantizers, levels, strict=True) if count]
    codes, _ = rvq_search([q.inputs(rows, count) for q, count in wanted])
    return codes.view(batch, frames, codes.shape[1]).transpose(1, 2)
