"""Conformer blocks over chunks of frames: attention with relative positions, causal convolutions.

A frame sees all frames of its own chunk, and those of some chunks before it (arXiv 2312.17279).
Keys lie in the order of time, so that all chunks have the same distances.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

BASE = 10_000.0


class RelativeAttention(Prepared):
    """Attention of chunks to themselves and `left` chunks before, with Transformer-XL's positions
    (arXiv 1901.02860): a score is (q + u) k + (q + v) r, where r is made of the distance."""

    def __init__(self, width: int, heads: int, chunk: int, left: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.chunk, self.left = heads, chunk, left
        self.in_proj = Linear(width, 3 * width, bias=bias, rows=chunk)
        self.out_proj = Linear(width, width, bias=bias, rows=chunk)
        self.relative = nn.Parameter(torch.empty(width, width))
        self.bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.bias_v = nn.Parameter(torch.empty(heads, width // heads))
        self._table: Tensor | None = None

    def prepare(self) -> None:
        self._table = self._distances()

    def _distances(self) -> Tensor:
        """r of each distance that there is, from 1 - chunk up: (heads, distances, head_dim)."""
        width = len(self.relative)
        count = torch.arange(1 - self.chunk, (self.left + 1) * self.chunk, dtype=torch.float64)
        frequency = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = count[:, None] * frequency
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(self.relative)
        turned = (table @ self.relative.T).view(len(table), self.heads, -1)
        return turned.transpose(0, 1).contiguous()

    def attend(
        self, x: Tensor, past: tuple[Tensor, Tensor], first: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (batch, frames, width), of which only the last chunk may be short.

        past   Keys and values of the `left` chunks before, (batch, heads, frames, head_dim).
        first  (batch,) int64, frames so far.
        """
        batch, frames, _ = x.shape
        qkv = self.in_proj(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = F.pad(qkv, (0, 0, 0, -frames % self.chunk))
        keys, values = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        count, before = k.shape[2] // self.chunk, self.left * self.chunk
        span = before + self.chunk
        # (batch * chunks, heads, positions, head_dim)
        q = q.reshape(batch, self.heads, count, self.chunk, -1).transpose(1, 2).flatten(0, 1)
        near, seen = (
            there.unfold(2, span, self.chunk).permute(0, 2, 1, 4, 3).flatten(0, 1)
            for there in (keys, values)
        )
        table = self._distances() if self._table is None else self._table
        scores = (q + self.bias_v[:, None]) @ table.transpose(1, 2)
        at = torch.arange(self.chunk, device=x.device)[:, None] + before + self.chunk - 1
        at = (at - torch.arange(span, device=x.device)).expand(*scores.shape[:2], -1, -1)
        bias = scores.gather(3, at) / math.sqrt(q.shape[3])
        # Which of the keys there are: none before the stream, none behind its end.
        starts = torch.arange(count, device=x.device)[:, None] * self.chunk - before
        number = first[:, None, None] + starts + torch.arange(span, device=x.device)
        there = (number >= 0) & (number < (first + frames)[:, None, None])
        bias = bias.masked_fill(~there.flatten(0, 1)[:, None, None], float("-inf"))
        y = F.scaled_dot_product_attention(q + self.bias_u[:, None], near, seen, bias)
        y = y.transpose(1, 2).reshape(batch, count * self.chunk, -1)[:, :frames]
        kept = slice(keys.shape[2] - before, None)
        return self.out_proj(y), (keys[:, :, kept].contiguous(), values[:, :, kept].contiguous())


class FeedForward(nn.Module):
    """linear2(silu(linear1(norm(x)))), of each frame alone."""

    def __init__(self, width: int, hidden: int, bias: bool, rows: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = Linear(width, hidden, bias=bias, rows=rows)
        self.linear2 = Linear(hidden, width, bias=bias, rows=rows)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear2(F.silu(self.linear1(self.norm(x))))
        return y


class ConformerBlock(Streamed):
    """(batch, width, frames) -> the same shape, chunk by chunk; the last one may be short.

    Half a feed-forward, attention, a gated causal convolution and half a feed-forward, each added
    to what came in, and a norm.

    State: frames so far (batch,) int64; keys and values (batch, heads, left * chunk, head_dim); of
    the convolution.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        chunk: int,
        *,
        left: int,
        kernel: int,
        bias: bool,
        conv_bias: bool,
    ) -> None:
        super().__init__()
        self.feed1 = FeedForward(width, hidden, bias, chunk)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, heads, chunk, left, bias)
        self.norm_conv = nn.LayerNorm(width)
        self.pointwise1 = Linear(width, 2 * width, bias=conv_bias, rows=chunk)
        self.depthwise = CausalConv1d(width, width, kernel, groups=width, bias=conv_bias)
        self.norm_depthwise = nn.LayerNorm(width)
        self.pointwise2 = Linear(width, width, bias=conv_bias, rows=chunk)
        self.feed2 = FeedForward(width, hidden, bias, chunk)
        self.norm = nn.LayerNorm(width)

    @property
    def steps(self) -> Steps:
        chunk = self.attention.chunk
        return Steps(chunk, chunk, chunk, chunk)

    def reach(self, first: int, last: int) -> Span:
        chunk = self.attention.chunk
        start = (first // chunk - self.attention.left) * chunk
        convolved = first - self.depthwise.context
        begin = (convolved // chunk - self.attention.left) * chunk
        return max(0, min(start, begin)), (last // chunk + 1) * chunk - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        chunk, left = self.attention.chunk, self.attention.left
        frames = x.shape[2]
        assert end or not frames % chunk, f"{frames} frames in mid-stream; a chunk has {chunk}"
        if not frames:
            return x, state
        x = x.transpose(1, 2)
        if isinstance(state, tuple):
            first, past, convolved = state
            assert isinstance(past, tuple) and isinstance(first, Tensor)
            keys, values = past
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        else:
            first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            heads = self.attention.heads
            keys = x.new_zeros(x.shape[0], heads, left * chunk, x.shape[2] // heads)
            values, convolved = keys.clone(), None
        x = x + 0.5 * self.feed1(x)
        y, past = self.attention.attend(self.norm_attention(x), (keys, values), first)
        x = x + y
        y = F.glu(self.pointwise1(self.norm_conv(x)), dim=-1).transpose(1, 2)
        y, convolved = self.depthwise.step(y, convolved, end=end)
        y = F.silu(self.norm_depthwise(y.transpose(1, 2)))
        x = x + self.pointwise2(y)
        x = x + 0.5 * self.feed2(x)
        return self.norm(x).transpose(1, 2), (first + frames, past, convolved)
