"""A transformer whose layers each see some positions before, and some after their own.

A position is computed as soon as what it sees is there, so nothing is computed twice, and the
look-ahead of the layers adds up. There are no positions in the attention, so keys lie in their
ring in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from streamenc.layers.attention.chunked import EncoderLayer
from streamenc.layers.attention.ring import InBlocks, InPlace, Ring
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

# So many queries of a long step attend at once, beside the positions that they see.
BLOCK = 64


class LookaheadTransformer(Streamed):
    """(batch, width, time) -> the same shape; pre-norm layers and a final norm.

    The first step takes as many positions more than it gives as the layers see ahead together. The
    definition, for any length, is `window_mask` in each layer.

    windows  (past, ahead) of each layer: how many positions before its own one sees, and after it.
    max_step So many positions at once are written in place.
    head_dim, attention_bias, norm_bias  As of EncoderLayer.

    State: positions so far (batch,) int64; and per layer keys and values in rings, (batch, heads,
    past + ahead + max_step, head_dim), and with look-ahead the inputs (batch, ahead, width) and
    queries (batch, heads, ahead, head_dim) that wait.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        windows: Sequence[tuple[int, int]],
        *,
        max_step: int = 2,
        head_dim: int | None = None,
        attention_bias: bool = True,
        norm_bias: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        assert all(past >= 0 <= ahead for past, ahead in self.windows)
        spans = (past + 1 + ahead for past, ahead in self.windows)
        self._rings = [Ring(n, n + max_step - 1, block=max(n, BLOCK)) for n in spans]
        self.max_step = max_step
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                heads,
                feed_forward,
                True,
                norm_eps,
                max_step,
                head_dim=head_dim,
                attention_bias=attention_bias,
                norm_bias=norm_bias,
            )
            for _ in self.windows
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps, bias=norm_bias)

    @property
    def steps(self) -> Steps:
        return Steps(lead=1 + sum(ahead for _, ahead in self.windows))

    def reach(self, first: int, last: int) -> Span:
        past, ahead = (sum(sides) for sides in zip(*self.windows, strict=True))
        return max(0, first - past), last + ahead

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        started = isinstance(state, tuple)
        if isinstance(state, tuple):
            position, *before = state
        else:
            position = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            before = [None] * len(self.layers)
        assert isinstance(position, Tensor)
        time = x.shape[-1]
        x = x.transpose(1, 2)
        plan: InPlace | InBlocks | None = None
        delay, planned, following = 0, (-1, -1), []
        for layer, (past, ahead), ring, held in zip(
            self.layers, self.windows, self._rings, before, strict=True
        ):
            assert isinstance(layer, EncoderLayer)
            if not x.shape[1] and not (started and ahead):
                following.append(held)
                continue
            if plan is None or ahead or planned != (past, ahead):
                seen = position - delay if started else position
                plan = _plan(ring, seen, x, ahead, started, end)
                planned = past, ahead
            x, after = layer.step(x, held, plan, None, waits=ahead > 0)
            following.append(after)
            delay += ahead
        return self.norm(x).transpose(1, 2), (position + time, *following)


def _plan(
    ring: Ring, seen: Tensor, x: Tensor, ahead: int, started: bool, end: bool
) -> InPlace | InBlocks:
    """How a layer that has seen so many positions, (batch,), attends with the new ones `x`."""
    new = x.shape[1]
    if 1 <= new <= ring.max_step and not end and (started or not ahead):
        return ring.in_place(seen, new, x.dtype)
    # At the start some keys come before the first query; at the end queries see keys that never
    # come.
    queries = new + ahead * (started + end - 1)
    early = 0 if started else ahead
    return ring.in_blocks(
        seen, new, queries, x.dtype, early=early, total=seen + new if end else None
    )


def window_mask(positions: int, past: int, ahead: int) -> Tensor:
    """The definition: (positions, positions) bool, whether position t (row) sees s (column)."""
    t = torch.arange(positions)
    distance = t[:, None] - t
    return (distance <= past) & (distance >= -ahead)
