"""A bias of attention by how far a key lies from its query, weighed by each query: WavLM's.

What a head adds to the product of query t and key s is

    gate(t) bias(s - t)    gate(t) = a(t) (b(t) c - 1) + 2

with a bias for each bucket of distances, which all layers share, and a and b of what enters the
attention at t, c learnt for each head. After Chen et al., WavLM, arXiv 2110.13900, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamenc.layers.streamed import Prepared


class RelativeBias(Prepared):
    """The bias of each distance, before any gate.

    A quarter of the buckets holds one distance each, for keys behind the query and as many for
    those before it; the others grow with the distance up to `max_distance`, and the last one holds
    all beyond.

    reach  Of keys so many positions before a query, and after it, a bias is asked for.
    """

    by_distance: Tensor | None

    def __init__(self, heads: int, buckets: int, max_distance: int, reach: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        self.max_distance, self.reach = max_distance, reach
        self.register_buffer("by_distance", None, persistent=False)

    def prepare(self) -> None:
        """Looks all distances up: (heads, distances)."""
        before, after = self.reach
        distances = torch.arange(-before, after + 1)
        buckets = distance_buckets(distances, len(self.weight), self.max_distance)
        self.by_distance = self.weight.detach()[buckets.to(self.weight.device)].t().contiguous()

    def table(self, queries: int, keys: int) -> Tensor:
        """(heads, queries, keys) for queries that lie side by side, the keys in order of time.

        The first key is the first that `reach` has.
        """
        assert self.by_distance is not None, "prepared before its first step"
        rows = self.by_distance[:, : queries - 1 + keys].unfold(-1, keys, 1)
        return rows.flip(1)


class Gate(nn.Module):
    """What each query weighs its biases with: (batch, time, width) -> (batch, heads, time, 1)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(head_dim, 8)
        self.scale = nn.Parameter(torch.empty(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        heads = x.view(batch, time, len(self.scale), -1).transpose(1, 2)
        # The published layer adds up four outputs for each of the two.
        both: Tensor = self.linear(heads).view(batch, len(self.scale), time, 2, 4).sum(-1)
        a, b = torch.sigmoid(both).chunk(2, dim=-1)
        return a * (b * self.scale - 1) + 2


def distance_buckets(distances: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Which bucket each distance, key minus query, lies in: int64, of any shape.

    In float32 as published, so that a distance on an edge falls on the same side.
    """
    half = buckets // 2
    exact = half // 2
    far = distances.abs()
    share = (far.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    large = (exact + share * (half - exact)).long().clamp(max=half - 1)
    return (distances > 0).long() * half + torch.where(far < exact, far, large)
