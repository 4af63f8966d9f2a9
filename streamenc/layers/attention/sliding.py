"""A causal transformer over a sliding window, on rings of keys and values.

A step of up to `max_step` positions goes through `ring_attention`, which writes its keys and values
ahead, in place, into slots that no query can see any more; only the position that the step returns
makes them visible. Longer steps attend in blocks and return new rings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State, leaves
from streamenc_kernels import (
    RingPlan,
    causal_bias,
    plan_ring,
    ring_attention,
    rotary,
    rotate,
)


class Transformer(Streamed):
    """Pre-norm transformer layers between convolutions: takes and gives (batch, width, time).

    Rotary positions, LayerNorm, GELU, and a learnt scale per channel on each residual branch.
    Position t sees the positions t - window + 1 to t.

    State: position (batch,) int64, and per layer keys and values, (batch, heads, capacity,
    head_dim).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        layers: int,
        window: int,
        *,
        max_step: int = 2,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.window, self.max_step = window, max_step
        self.capacity = window + max_step - 1
        self.rope_theta = rope_theta
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, feed_forward, norm_eps) for _ in range(layers)
        )

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return max(0, first - len(self.layers) * (self.window - 1)), last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, time = x.shape
        if isinstance(state, tuple):
            position, *rings = state
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            shape = (batch, self.heads, self.capacity, self.head_dim)
            rings = [(x.new_zeros(shape), x.new_zeros(shape)) for _ in self.layers]
        assert isinstance(position, Tensor)

        plan: Ring | Blocks
        if time <= self.max_step:
            first = next(leaves(rings[0]))
            plan = Ring(plan_ring(position, time, first, self.window, self.rope_theta))
        else:
            positions = position[:, None] + torch.arange(time, device=x.device)
            turn = rotary(positions, self.head_dim, self.rope_theta, x.dtype)
            plan = Blocks.plan(positions, turn, self.window, self.capacity, x.dtype)

        x = x.transpose(1, 2)
        following: list[State] = []
        for layer, ring in zip(self.layers, rings, strict=True):
            assert isinstance(layer, TransformerLayer) and isinstance(ring, tuple)
            keys, values = ring
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
            q, k, v = layer.project(x)
            y, keys, values = plan.attend(q, k, v, keys, values)
            x = layer.combine(x, y)
            following.append((keys, values))
        return x.transpose(1, 2), (position + time, *following)


class TransformerLayer(nn.Module):
    """The part of a layer that looks at each position alone."""

    def __init__(self, width: int, heads: int, feed_forward: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.in_proj = Linear(width, 3 * width)
        self.out_proj = Linear(width, width)
        self.scale1 = nn.Parameter(torch.empty(width))
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.linear1 = Linear(width, feed_forward)
        self.linear2 = Linear(feed_forward, width)
        self.scale2 = nn.Parameter(torch.empty(width))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, time, width) -> queries, keys, values, each (batch, heads, time, head_dim)."""
        batch, time, width = x.shape
        qkv = self.in_proj(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what the heads attended to, (batch, heads, time, head_dim), and the feed-forward."""
        x = x + self.scale1 * self.out_proj(attended.transpose(1, 2).reshape(x.shape))
        y: Tensor = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + self.scale2 * y


class Ring(NamedTuple):
    """How a short step writes into the ring and attends to it in place; the same for all layers."""

    plan: RingPlan

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ring_attention(q, k, v, keys, values, self.plan), keys, values


class Blocks(NamedTuple):
    """How a long step attends: its keys behind the ring's past ones, in blocks of queries."""

    turn: tuple[Tensor, Tensor]
    past: Tensor
    blocks: list[tuple[slice, slice, Tensor]]
    slots: Tensor

    @classmethod
    def plan(
        cls,
        positions: Tensor,
        turn: tuple[Tensor, Tensor],
        window: int,
        capacity: int,
        dtype: torch.dtype,
    ) -> Blocks:
        time, span = positions.shape[1], window - 1
        before = positions[:, :1] - span + torch.arange(span, device=positions.device)
        held = torch.cat((before, positions), dim=1)
        size = max(window, 64)
        blocks = []
        for start in range(0, time, size):
            stop = min(start + size, time)
            seen = slice(start, stop + span)
            bias = causal_bias(positions[:, start:stop], held[:, seen], window, dtype)
            blocks.append((slice(start, stop), seen, bias))
        kept = held[:, -capacity:]
        past, slots = ((held % capacity)[:, None, :, None] for held in (before, kept))
        return cls(turn, past, blocks, slots)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, _, dim = k.shape
        q, k = rotate(q, *self.turn), rotate(k, *self.turn)
        past = self.past.expand(batch, heads, -1, dim)
        k = torch.cat((keys.gather(2, past), k), dim=2)
        v = torch.cat((values.gather(2, past), v), dim=2)
        y = [
            F.scaled_dot_product_attention(q[:, :, now], k[:, :, seen], v[:, :, seen], bias)
            for now, seen, bias in self.blocks
        ]
        slots = self.slots.expand(batch, heads, -1, dim)
        kept = slots.shape[2]
        # New rings: these writes reach live slots, and a lane that is not committed still needs its
        # own.
        keys = keys.scatter(2, slots, k[:, :, -kept:])
        values = values.scatter(2, slots, v[:, :, -kept:])
        return torch.cat(y, dim=2), keys, values
