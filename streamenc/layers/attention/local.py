"""Attention within windows that do not overlap: each position sees those of its own window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State


class LocalAttention(Streamed):
    """x + attention(norm(x)), (batch, width, time) -> the same, in windows from the stream's start.

    Rotary positions (Su et al., arXiv 2104.09864) begin anew in each window; channel i of a head is
    paired with channel i + half. A stream that ends within a window has a shorter last one.

    frequencies  (head / 2,), radians from one position to the next.

    No state: a step takes whole windows.
    """

    frequencies: Tensor

    def __init__(self, width: int, head: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, width // head
        self.norm = nn.LayerNorm(width)
        self.to_qkv = Linear(width, 3 * width, rows=window)
        self.to_out = Linear(width, width, rows=window)
        self.register_buffer("frequencies", torch.empty(head // 2))

    @property
    def steps(self) -> Steps:
        return Steps(self.window, self.window, self.window, self.window)

    def reach(self, first: int, last: int) -> Span:
        window = self.window
        return first // window * window, (last // window + 1) * window - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        rest = x.shape[-1] % self.window
        assert end or not rest
        whole, tail = x[..., : x.shape[-1] - rest], x[..., x.shape[-1] - rest :]
        parts = [self._windows(part, size) for part, size in ((whole, self.window), (tail, rest))]
        return torch.cat(parts, dim=-1) if rest else parts[0], None

    def _windows(self, x: Tensor, size: int) -> Tensor:
        """(batch, width, a multiple of size)."""
        batch, width, time = x.shape
        if not time:
            return x
        rows = x.transpose(1, 2).reshape(-1, size, width)
        q, k, v = self.to_qkv(self.norm(rows)).chunk(3, dim=-1)
        shape = (rows.shape[0], size, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
        angles = torch.arange(size, device=x.device).to(x.dtype)[:, None] * self.frequencies
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        y = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)
        added: Tensor = rows + self.to_out(y.transpose(1, 2).flatten(2))
        return added.view(batch, time, width).transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
