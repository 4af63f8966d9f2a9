"""Residual vector quantisation with codebooks that are prepared once: in one space, or each in a
space of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.streamed import Exact, Exportable, Prepared
from streamenc_kernels import Quantiser, pack_linear, rvq_search

if TYPE_CHECKING:
    from streamenc.compiled.codebooks import Codebooks

# Up to so many frames at once reading the codebooks is what takes the time.
PACKED_ROWS = 16
# Of more frames on a CPU, so many distances are made at once: they stay in a core's own cache.
BLOCK_DISTANCES = 1 << 18


class ResidualVQ(Prepared, Exact, Exportable):
    """Codebooks of several levels, and the projection into their space.

    Stateless: each frame is quantised alone. Exact: distances in quantiser precision flip codes.

    codebooks   (levels, entries, dim).
    project_in  (dim, channels) where an encoder quantises vectors of `channels_in`, else None.
    """

    codebooks: Tensor
    half_norms: Tensor
    _compiled: Codebooks | None

    def __init__(
        self, levels: int, entries: int, dim: int, *, channels_in: int | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.empty(levels, entries, dim))
        self.register_buffer("half_norms", None, persistent=False)
        self._packed: list[Tensor | None] = []
        self._compiled = None
        self.project_in = (
            None if channels_in is None else nn.Parameter(torch.empty(dim, channels_in))
        )

    def prepare(self) -> None:
        self.half_norms = 0.5 * (self.codebooks * self.codebooks).sum(dim=-1)
        self._packed = []
        self._compiled = None

    def use(self, codebooks: Codebooks) -> None:
        """Has few vectors on a CPU be quantised, and codes be looked up, by instructions."""
        self._compiled = codebooks

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
        return decode([self], codes)

    def sums(self, codes: Tensor) -> Tensor:
        """What `decode` gives, in torch."""
        total = F.embedding(codes[:, 0], self.codebooks[0])
        for level in range(1, codes.shape[1]):
            total = total + F.embedding(codes[:, level], self.codebooks[level])
        return total.transpose(1, 2)


def encode(quantizers: Sequence[ResidualVQ], x: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes of quantisers that take the same frames, one after the other, in one search.

    (batch, channels, frames) -> (batch, sum of levels, frames) int64. A quantiser of which no
    levels are wanted is not asked.
    """
    if (compiled := quantizers[0]._compiled) is not None:
        found = compiled.encode(quantizers, x, levels)
        if found is not None:
            return found
    batch, channels, frames = x.shape
    # One vector after the other in memory: the other way round, products take 5 times longer.
    rows = x.transpose(1, 2).reshape(batch * frames, channels).contiguous()
    if not any(levels):
        return torch.empty(batch, 0, frames, dtype=torch.int64, device=x.device)
    wanted = [(q, count) for q, count in zip(quantizers, levels, strict=True) if count]
    if not any(q._exported for q, _ in wanted) and _searches_in_blocks(rows):
        codes = torch.cat([search_in_blocks(q.inputs(rows, count)) for q, count in wanted], dim=1)
        return codes.view(batch, frames, codes.shape[1]).transpose(1, 2)
    codes, _ = rvq_search([q.inputs(rows, count) for q, count in wanted])
    return codes.view(batch, frames, codes.shape[1]).transpose(1, 2)


def _searches_in_blocks(rows: Tensor) -> bool:
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return False  # a graph must not ask how many there are
    return len(rows) > PACKED_ROWS


def search_in_blocks(quantiser: Quantiser) -> Tensor:
    """The codes of `rvq_search`, (rows, levels), of many rows on a CPU: 2.7 times as fast.

    Distances are made in one small buffer, and numpy looks for the nearest: torch's argmin takes
    ten times as long as that along rows that it could read eight or sixteen numbers at a time.
    """
    books, half_norms = quantiser.codebooks, quantiser.half_norms
    count, entries = quantiser.depth, books.shape[1]
    rows = quantiser.x.detach()
    codes = torch.empty(len(rows), count, dtype=torch.int64)
    block = max(1, BLOCK_DISTANCES // entries)
    distances = torch.empty(min(block, len(rows)), entries, dtype=books.dtype)
    for start in range(0, len(rows), block):
        left = rows[start : start + block]
        into = distances[: len(left)]
        for level in range(count):
            torch.mm(left, books[level].t(), out=into)
            torch.sub(half_norms[level], into, out=into)
            nearest = torch.from_numpy(into.numpy().argmin(axis=1))
            codes[start : start + block, level] = nearest
            if level + 1 < count:
                left = left - books[level].index_select(0, nearest)
    return codes


def decode(quantizers: Sequence[ResidualVQ], codes: Tensor) -> Tensor:
    """The sums of entries of quantisers whose codes stand one after the other.

    (batch, the first levels of all, frames) -> (batch, dims of all, frames). A quantiser of which
    there are no codes gives zeros.
    """
    if (compiled := quantizers[0]._compiled) is not None:
        found = compiled.decode(quantizers, codes)
        if found is not None:
            return found
    sums: list[Tensor] = []
    for quantizer in quantizers:
        own, codes = codes[:, : quantizer.levels], codes[:, quantizer.levels :]
        sums.append(quantizer.sums(own) if own.shape[1] else torch.zeros_like(sums[0]))
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)


class FactorisedVQ(Prepared, Exact):
    """Residual codebooks in spaces of their own: each level projects what is left down to few
    channels, takes the entry of nearest direction there, and projects that one up again (the DAC
    family's; Yu et al., arXiv 2110.04627, section 3.2).

    A level may take the nearest entry instead, whatever its direction. And it may see the mean over
    some frames; its code then stands at each of them.

    Stateless, and exact as ResidualVQ is.

    strides     Frames that share a code, by level: 1 for each where None.
    directional  Whether only directions count.
    codebooks   (levels, entries, dim).
    into        (levels, dim, channels), and `into_bias` (levels, dim): the projections down.
    out_of      (levels, channels, dim), and `out_of_bias` (levels, channels): those up.
    """

    codebooks: Tensor
    directions: Tensor
    half_norms: Tensor

    def __init__(
        self,
        levels: int,
        entries: int,
        dim: int,
        channels: int,
        *,
        strides: Sequence[int] | None = None,
        directional: bool = True,
    ) -> None:
        super().__init__()
        self.directional = directional
        self.strides = (1,) * levels if strides is None else tuple(strides)
        assert len(self.strides) == levels
        self.register_buffer("codebooks", torch.empty(levels, entries, dim))
        self.into = nn.Parameter(torch.empty(levels, dim, channels))
        self.into_bias = nn.Parameter(torch.empty(levels, dim))
        self.out_of = nn.Parameter(torch.empty(levels, channels, dim))
        self.out_of_bias = nn.Parameter(torch.empty(levels, channels))
        self.register_buffer("directions", None, persistent=False)
        self.register_buffer("half_norms", None, persistent=False)

    def prepare(self) -> None:
        self.directions = self.codebooks
        if self.directional:
            self.directions = F.normalize(self.codebooks, dim=-1)
        # Of directions 1/2, but of an entry of zeros, which has no direction.
        self.half_norms = 0.5 * self.directions.square().sum(dim=-1)

    @property
    def levels(self) -> int:
        return self.codebooks.shape[0]

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """(batch, channels, frames) -> codes (batch, levels, frames) int64; frames are a multiple
        of all strides."""
        batch, channels, frames = x.shape
        left = x.transpose(1, 2).reshape(batch * frames, channels).to(self.codebooks.dtype)
        codes: list[Tensor] = []
        for level in range(self.levels if levels is None else levels):
            if codes:
                left = left - self.entries(codes[-1], level - 1)
            codes.append(self.nearness(left, level).argmax(dim=-1))
            if self.strides[level] > 1:
                codes[-1] = codes[-1].repeat_interleave(self.strides[level])
        if not codes:
            return torch.empty(batch, 0, frames, dtype=torch.int64, device=x.device)
        return torch.stack(codes, dim=1).view(batch, frames, len(codes)).transpose(1, 2)

    def nearness(self, left: Tensor, level: int) -> Tensor:
        """How near to each entry what is left (frames, channels) is: (frames / stride, entries)."""
        if (stride := self.strides[level]) > 1:
            left = left.view(-1, stride, left.shape[-1]).mean(dim=1)
        inside = F.linear(left, self.into[level], self.into_bias[level])
        if self.directional:
            inside = F.normalize(inside, dim=-1)
        return torch.addmm(-self.half_norms[level], inside, self.directions[level].t())

    def entries(self, codes: Tensor, level: int) -> Tensor:
        """What a level's codes (frames,) stand for: (frames, channels)."""
        inside = F.embedding(codes, self.codebooks[level])
        return F.linear(inside, self.out_of[level], self.out_of_bias[level])

    def vectors(self, codes: Tensor) -> Tensor:
        """The entries themselves, of codes (batch, the first levels, frames): (batch, levels * (dim
        + 1), frames), of each level its entry and a 1, and zeros of the levels that are missing.

        They are looked up only, so that how many frames are decoded at once changes not even the
        last bit; `joined_weight` makes their sum of them.
        """
        batch, given, frames = codes.shape
        levels, _, dim = self.codebooks.shape
        x = self.codebooks.new_zeros(batch, levels, dim + 1, frames)
        for level in range(given):
            entries = F.embedding(codes[:, level], self.codebooks[level])
            x[:, level, :dim] = entries.transpose(1, 2)
            x[:, level, dim] = 1
        return x.flatten(1, 2)

    def joined_weight(self) -> Tensor:
        """(channels, levels * (dim + 1)): the projections up of all levels, their biases beside
        them."""
        joined = torch.cat((self.out_of, self.out_of_bias[..., None]), dim=-1)
        return joined.transpose(0, 1).flatten(1)
