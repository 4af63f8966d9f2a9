"""A causal transformer over a sliding window, on rings of keys, held rotated, and values.

A step of up to `max_step` positions goes through `ring_attention`, which rotates, writes into the
ring in place and attends to it in one op; longer ones attend in blocks and return new rings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.attention.ring import Ring
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Exportable, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State, leaves
from streamenc_kernels import attend_rotated, plan_ring, ring_attention, rotary, rotate


class Transformer(Streamed, Exportable):
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
        self.ring = Ring(window, window + max_step - 1, block=max(window, 64))
        self.rope_theta = rope_theta
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, feed_forward, norm_eps) for _ in range(layers)
        )

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return max(0, first - len(self.layers) * (self.ring.window - 1)), last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, time = x.shape
        x = x.transpose(1, 2)
        if isinstance(state, tuple):
            position, *rings = state
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            like = x.view(batch, time, self.heads, self.head_dim).transpose(1, 2)
            rings = [self.ring.empty(like) for _ in self.layers]
        assert isinstance(position, Tensor)

        short = time <= self.ring.max_step
        if short:
            first = next(leaves(rings[0]))
            plan = plan_ring(position, time, first, self.ring.window, self.rope_theta)
        else:
            positions = position[:, None] + torch.arange(time, device=x.device)
            turn = rotary(positions, self.head_dim, self.rope_theta, x.dtype)
            blocks = self.ring.in_blocks(position, time, time, x.dtype)

        following: list[State] = []
        for layer, ring in zip(self.layers, rings, strict=True):
            assert isinstance(layer, TransformerLayer) and isinstance(ring, tuple)
            keys, values = ring
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
            q, k, v = layer.project(x)
            if short and self._exported:
                q, k = _onnx_rotate(q, plan.cos, plan.sin), _onnx_rotate(k, plan.cos, plan.sin)
                y = attend_rotated(q, k, v, keys, values, plan)
            elif short:
                y = ring_attention(q, k, v, keys, values, plan)
            else:
                turned = _onnx_rotate if self._exported else rotate
                q, k = turned(q, *turn), turned(k, *turn)
                y, keys, values = blocks.attend(q, k, v, keys, values)
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


def _onnx_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as the one operator that ONNX has for it."""
    rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos[:, 0], sin[:, 0])
    return rotated
