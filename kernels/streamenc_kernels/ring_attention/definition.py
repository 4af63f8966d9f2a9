"""What `ring_attention` means, in plain torch, and the plan that its kernel takes as well."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RingPlan(NamedTuple):
    """What all layers of one step share; `plan_ring` makes it.

    position   (batch,) int64, the first new position of each lane.
    cos, sin   (batch, 1, time, head_dim / 2), of the rotary embedding.
    window     Position t sees the positions t - window + 1 to t.
    active     (batch,) bool, or None: all lanes are.
    lanes      (batch,) int64, whose ring each row of the batch has; None: row b has ring b.
    slots      (batch, 1, time, 1) int64, where the new positions go, and
    bias       (batch, 1, time, capacity), 0 where a query may see a slot and -inf elsewhere; both
               None where the Triton kernel runs, which needs neither.
    """

    position: Tensor
    cos: Tensor
    sin: Tensor
    window: int
    active: Tensor | None
    lanes: Tensor | None
    slots: Tensor | None
    bias: Tensor | None


def ring_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: RingPlan
) -> Tensor:
    """The definition of `ring_attention`, and what runs on the CPU."""
    q, k = rotate(q, plan.cos, plan.sin), rotate(k, plan.cos, plan.sin)
    return attend_rotated(q, k, v, keys, values, plan)


def attend_rotated(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: RingPlan
) -> Tensor:
    """`ring_attention_torch` on queries and keys that are rotated already."""
    assert plan.slots is not None
    slots = plan.slots.expand(k.shape)
    if plan.lanes is not None:
        pools = keys, values
        keys, values = keys.index_select(0, plan.lanes), values.index_select(0, plan.lanes)
    if plan.active is not None:
        active = plan.active[:, None, None, None]
        k = torch.where(active, k, keys.gather(2, slots))
        v = torch.where(active, v, values.gather(2, slots))
    keys.scatter_(2, slots, k)
    values.scatter_(2, slots, v)
    if plan.lanes is not None:
        heads = torch.arange(k.shape[1], device=k.device)[:, None]
        places = plan.lanes[:, None, None], heads, plan.slots[:, :, :, 0]
        for pool, new in zip(pools, (k, v), strict=True):
            pool.index_put_(places, new)
    y = F.scaled_dot_product_attention(q, keys, values, plan.bias)
    return y if plan.active is None else torch.where(active, y, 0.0)


def causal_bias(queries: Tensor, held: Tensor, window: int, dtype: torch.dtype) -> Tensor:
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
