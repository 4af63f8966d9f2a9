"""A causal transformer over a sliding window, on rings of keys and values.

The ring holds window + max_step - 1 positions. A step of up to `max_step` positions writes its keys
and values ahead, in place, into slots that no query can see any more, and attends to the ring as it
lies; only the position that the step returns makes them visible, so a lane whose position is not
committed was not harmed. With fewer slots, a step would overwrite keys that its own first query
still needs. Longer steps attend in blocks and
return new rings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.base import Streamed
from streamenc.layers.linear import Linear
from streamenc.state import State


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

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, time = x.shape
        if isinstance(state, tuple):
            position, *rings = state
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            shape = (batch, self.heads, self.capacity, self.head_dim)
            rings = [(x.new_zeros(shape), x.new_zeros(shape)) for _ in self.layers]
        assert isinstance(position, Tensor)

        positions = position[:, None] + torch.arange(time, device=x.device)
        cos, sin = rotary(positions, self.head_dim, self.rope_theta, x.dtype)
        plan: Ring | Blocks
        if time <= self.max_step:
            plan = Ring.plan(positions, self.window, self.capacity, x.dtype)
        else:
            plan = Blocks.plan(positions, self.window, self.capacity, x.dtype)

        x = x.transpose(1, 2)
        following: list[State] = []
        for layer, ring in zip(self.layers, rings, strict=True):
            assert isinstance(layer, TransformerLayer) and isinstance(ring, tuple)
            keys, values = ring
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
            q, k, v = layer.project(x)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
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

    slots: Tensor
    bias: Tensor

    @classmethod
    def plan(cls, positions: Tensor, window: int, capacity: int, dtype: torch.dtype) -> Ring:
        newest = positions[:, -1:]
        # Slot s holds the newest position that is congruent to s and not past the last one written.
        held = newest - (newest - torch.arange(capacity, device=positions.device)) % capacity
        return cls((positions % capacity)[:, None, :, None], _bias(positions, held, window, dtype))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        slots = self.slots.expand(k.shape)
        keys.scatter_(2, slots, k)
        values.scatter_(2, slots, v)
        return F.scaled_dot_product_attention(q, keys, values, self.bias), keys, values


class Blocks(NamedTuple):
    """How a long step attends: its keys behind the ring's past ones, in blocks of queries."""

    past: Tensor
    blocks: list[tuple[slice, slice, Tensor]]
    slots: Tensor

    @classmethod
    def plan(cls, positions: Tensor, window: int, capacity: int, dtype: torch.dtype) -> Blocks:
        time, span = positions.shape[1], window - 1
        before = positions[:, :1] - span + torch.arange(span, device=positions.device)
        held = torch.cat((before, positions), dim=1)
        size = max(window, 64)
        blocks = []
        for start in range(0, time, size):
            stop = min(start + size, time)
            seen = slice(start, stop + span)
            bias = _bias(positions[:, start:stop], held[:, seen], window, dtype)
            blocks.append((slice(start, stop), seen, bias))
        kept = held[:, -capacity:]
        return cls(
            (before % capacity)[:, None, :, None], blocks, (kept % capacity)[:, None, :, None]
        )

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, _, dim = k.shape
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


def _bias(queries: Tensor, held: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """0 where a query may see a key and -inf elsewhere, (batch, 1, queries, keys).

    queries and held are positions, (batch, queries) and (batch, keys); negative where no key is
    held.
    """
    age = queries[:, :, None] - held[:, None, :]
    visible = (age >= 0) & (age < window) & (held >= 0)[:, None, :]
    bias = torch.zeros(visible.shape, dtype=dtype, device=queries.device)
    return bias.masked_fill(~visible, float("-inf"))[:, None]


def rotary(positions: Tensor, dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding, (batch, 1, time, dim / 2), for positions (batch, time).

    Angles are computed in float64: in float32 they would be off by 5e-3 rad after an hour of audio.
    """
    frequency = theta ** (
        -torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    )
    angle = positions[:, None, :, None] * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + dim / 2) of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
