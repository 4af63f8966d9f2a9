"""A transformer over chunks of frames, which attend to their own chunk and to some before it.

This is how an encoder that was trained on whole clips runs on a stream without computing any frame
twice. Time is cut into chunks of C frames; a frame of chunk k sees all frames of the chunks from
k - left to k, those behind it in its own chunk too. So its look-ahead ends with the chunk in every
layer, where a mask that slides with each frame would add up its look-ahead layer by layer.

More look-ahead is given layer by layer: in each of the first `ahead` layers a frame of chunk k also
sees chunk k + 1, and is computed once that is there. Whole chunks later, nothing is computed twice
either, and the last layer's frames depend on the chunks up to k + ahead.

There are no positions in the attention: wav2vec 2.0, HuBERT and Whisper add theirs before the first
layer. Therefore keys lie in their ring in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.base import Streamed
from streamenc.layers.linear import Linear
from streamenc.state import State


class ChunkedTransformer(Streamed):
    """(batch, width, frames) -> (batch, len(outputs) * width, frames).

    The first step takes (1 + ahead) * chunk frames and gives `chunk` of them for each output (more
    where no output lies behind all look-ahead); later steps take and give whole chunks. The stream
    may end anywhere: its last chunk is a short one. The definition, for any length, is
    `chunk_mask` in each layer; `whole` is the same layers without any mask.

    left        How many chunks before its own a frame sees.
    ahead       In how many of the first layers it also sees the chunk after its own.
    norm_first  Normalises what goes into each branch, instead of the sum after it.
    final_norm  Normalises the last layer's output.
    outputs     Which hidden states come out, one below the other: 0 is the input, n the output of
                layer n. All are of the same frames: those of early layers wait for the last one.

    State: position (batch,) int64, in chunks; per layer keys and values in rings, (batch, heads,
    (left + 1) * chunk, head_dim), one chunk longer with look-ahead, and then input and queries of
    the chunk that waits for the next; hidden states that wait, (batch, frames, width).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        layers: int,
        chunk: int,
        *,
        left: int,
        ahead: int = 0,
        norm_first: bool = True,
        final_norm: bool = False,
        norm_eps: float = 1e-5,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        assert chunk > 0 <= left and 0 <= ahead <= layers and width % heads == 0
        self.chunk, self.left, self.ahead = chunk, left, ahead
        self.outputs = (layers,) if outputs is None else tuple(outputs)
        assert all(0 <= n <= layers for n in self.outputs)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feed_forward, norm_first, norm_eps, rows=chunk)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps) if final_norm else None

    @property
    def lag(self) -> int:
        """By how many chunks the outputs come later than the input."""
        return min(self.ahead, max(self.outputs))

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, width, time = x.shape
        started = isinstance(state, tuple)
        assert end or (time % self.chunk == 0 and (started or time > self.ahead * self.chunk))
        if not time and not (started and self.ahead):
            return x.new_zeros(batch, len(self.outputs) * width, 0), state
        if isinstance(state, tuple):
            position, layer_states, waiting = state
            assert isinstance(layer_states, tuple) and isinstance(waiting, tuple)
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            layer_states, waiting = (None,) * len(self.layers), (None,) * len(self.outputs)
        assert isinstance(position, Tensor)

        x = F.pad(x.transpose(1, 2), (0, 0, 0, -time % self.chunk))
        total = position * self.chunk + time
        hidden, following = [x], []
        plan: Ring | Blocks | None = None
        for index, (layer, before) in enumerate(zip(self.layers, layer_states, strict=True)):
            assert isinstance(layer, EncoderLayer)
            if plan is None or index <= self.ahead:
                seen = position - min(index, self.ahead) if started else position
                plan = self._plan(x, seen, total, index < self.ahead, started, end)
            x, after = layer.step(x, before, plan)
            hidden.append(x)
            following.append(after)
        if self.norm is not None:
            hidden[-1] = self.norm(hidden[-1])
        y, held = self._aligned(hidden, waiting, time, end)
        if end:
            return y, None
        return y, (position + time // self.chunk, tuple(following), held)

    def whole(self, x: Tensor) -> Tensor:
        """The published meaning: (batch, width, frames), all of which see each other."""
        x = x.transpose(1, 2)
        hidden = [x]
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            q, k, v = layer.project(x)
            x = layer.combine(x, F.scaled_dot_product_attention(q, k, v))
            hidden.append(x)
        if self.norm is not None:
            hidden[-1] = self.norm(hidden[-1])
        return torch.cat([hidden[n] for n in self.outputs], dim=-1).transpose(1, 2)

    def _plan(
        self, x: Tensor, seen: Tensor, total: Tensor, ahead: bool, started: bool, end: bool
    ) -> Ring | Blocks:
        chunk, slots = self.chunk, self.left + 1 + ahead
        if x.shape[1] == chunk and not end and (started or not ahead):
            return Ring.plan(seen, chunk, slots, ahead, x.dtype)
        new = x.shape[1] // chunk
        return Blocks.plan(seen, total, new, chunk, slots, ahead, started, end, x.dtype)

    def _aligned(
        self, hidden: list[Tensor], waiting: Sequence[State], time: int, end: bool
    ) -> tuple[Tensor, State]:
        """The outputs of the frames that all of them have, and what waits for the next step."""
        wanted = []
        for n, held in zip(self.outputs, waiting, strict=True):
            new = hidden[n]
            wanted.append(torch.cat((held, new), dim=1) if isinstance(held, Tensor) else new)
        frames = min(h.shape[1] for h in wanted)
        y = torch.cat([h[:, :frames] for h in wanted], dim=-1)
        if end:
            y = y[:, : frames - -time % self.chunk]
        late = self.lag
        held_on = tuple(
            h[:, frames:].contiguous() if min(n, self.ahead) < late else None
            for n, h in zip(self.outputs, wanted, strict=True)
        )
        return y.transpose(1, 2), held_on


class EncoderLayer(nn.Module):
    """Attention and a feed-forward with GELU, each with a bias and a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        norm_first: bool,
        norm_eps: float,
        rows: int = 2,
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.in_proj = Linear(width, 3 * width, bias=True, rows=rows)
        self.out_proj = Linear(width, width, bias=True, rows=rows)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.linear1 = Linear(width, feed_forward, bias=True, rows=rows)
        self.linear2 = Linear(feed_forward, width, bias=True, rows=rows)

    def step(self, x: Tensor, state: State, plan: Ring | Blocks) -> tuple[Tensor, State]:
        """(batch, frames, width) -> the frames that see all they may, and the state.

        State: keys and values; with look-ahead also input and queries of the chunk that waits.
        """
        q, k, v = self.project(x)
        if isinstance(state, tuple):
            keys, values, *held = state
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        else:
            shape = (*k.shape[:2], plan.slots * plan.chunk, k.shape[3])
            keys, values, held = k.new_zeros(shape), v.new_zeros(shape), []
        if plan.ahead and held:
            x_held, q_held = held
            assert isinstance(x_held, Tensor) and isinstance(q_held, Tensor)
            x, q = torch.cat((x_held, x), dim=1), torch.cat((q_held, q), dim=2)
        ready = x.shape[1] - plan.waiting
        y, keys, values = plan.attend(q[:, :, :ready], k, v, keys, values)
        after: State = (keys, values)
        if plan.ahead:
            after = (keys, values, x[:, ready:].contiguous(), q[:, :, ready:].contiguous())
        return self.combine(x[:, :ready], y), after

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, time, width) -> queries, keys, values, each (batch, heads, time, head_dim)."""
        batch, time, width = x.shape
        normed = self.norm1(x) if self.norm_first else x
        qkv = self.in_proj(normed).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what the heads attended to, (batch, heads, time, head_dim), and the feed-forward."""
        x = x + self.out_proj(attended.transpose(1, 2).reshape(x.shape))
        if not self.norm_first:
            x = self.norm1(x)
        y: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x) if self.norm_first else x)))
        return y if self.norm_first else self.norm2(y)


class Ring(NamedTuple):
    """A step of one chunk in mid-stream: it is written in place over the one that no query sees.

    Like the rings of `attention`, it is written ahead: until the position moves on, the chunk that
    was overwritten is visible to nobody.
    """

    chunk: int
    slots: int
    ahead: bool
    waiting: int
    written: Tensor  # (batch, 1, chunk, 1)
    bias: Tensor  # (batch, 1, 1, slots * chunk)

    @classmethod
    def plan(cls, seen: Tensor, chunk: int, slots: int, ahead: bool, dtype: torch.dtype) -> Ring:
        frames = torch.arange(slots * chunk, device=seen.device)
        written = (seen % slots)[:, None] * chunk + frames[:chunk]
        visible = frames // chunk <= seen[:, None]
        bias = _bias(visible[:, None, None], dtype)
        return cls(chunk, slots, ahead, ahead * chunk, written[:, None, :, None], bias)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        written = self.written.expand(k.shape)
        keys.scatter_(2, written, k)
        values.scatter_(2, written, v)
        y = F.scaled_dot_product_attention(q, keys, values, self.bias)
        return y, keys, values


class Blocks(NamedTuple):
    """Any other step: the chunks are attended to side by side, and the rings are new ones."""

    chunk: int
    slots: int
    ahead: bool
    waiting: int
    past: Tensor | None  # (batch, 1, chunks before the new ones, 1, 1), or None
    padding: tuple[int, int]  # empty chunks before and after
    bias: Tensor  # (batch * query chunks, 1, 1, slots * chunk)
    kept: Tensor  # (batch, 1, chunks, 1, 1), the slots of the last ones

    @classmethod
    def plan(
        cls,
        seen: Tensor,
        total: Tensor,
        new: int,
        chunk: int,
        slots: int,
        ahead: bool,
        started: bool,
        end: bool,
        dtype: torch.dtype,
    ) -> Blocks:
        span = slots - 1  # chunks that a query sees besides the first of its keys
        before = span if started else span - ahead
        after = int(ahead and end)
        chunks = seen[:, None] - before + torch.arange(before + new + after, device=seen.device)
        frames = chunks[:, :, None] * chunk + torch.arange(chunk, device=seen.device)
        there = (frames >= 0) & (frames < total[:, None, None])
        visible = there.unfold(1, slots, 1).transpose(2, 3).reshape(-1, 1, 1, slots * chunk)
        held = chunks[:, : before + new]
        past = (held[:, :before] % slots)[:, None, :, None, None] if started else None
        kept = (held[:, -slots:] % slots)[:, None, :, None, None]
        padding = (0 if started else before, after)
        waiting = chunk if ahead and not end else 0
        return cls(chunk, slots, ahead, waiting, past, padding, _bias(visible, dtype), kept)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, time, dim = q.shape
        queries = q.reshape(batch, heads, -1, self.chunk, dim).transpose(1, 2).flatten(0, 1)
        k_seen, keys = self._seen(k, keys)
        v_seen, values = self._seen(v, values)
        y = F.scaled_dot_product_attention(queries, k_seen, v_seen, self.bias)
        y = y.view(batch, -1, heads, self.chunk, dim).transpose(1, 2)
        return y.reshape(batch, heads, time, dim), keys, values

    def _seen(self, new: Tensor, ring: Tensor) -> tuple[Tensor, Tensor]:
        """What each chunk of queries sees, (batch * chunks, heads, slots * chunk, dim), and the
        ring after it: a new one, as these writes reach live slots, and a lane that is not committed
        still needs its own."""
        batch, heads, time, dim = new.shape
        there = new.reshape(batch, heads, time // self.chunk, self.chunk, dim)
        held = ring.view(batch, heads, self.slots, self.chunk, dim)
        if self.past is not None:
            past = self.past.expand(batch, heads, -1, self.chunk, dim)
            there = torch.cat((held.gather(2, past), there), dim=2)
        there = F.pad(there, (0, 0, 0, 0, *self.padding))
        windows = there.unfold(2, self.slots, 1).permute(0, 2, 1, 5, 3, 4)
        seen = windows.reshape(-1, heads, self.slots * self.chunk, dim)
        last = there[:, :, : there.shape[2] - self.padding[1]][:, :, -self.slots :]
        kept = self.kept.expand(batch, heads, -1, self.chunk, dim)
        return seen, held.scatter(2, kept, last).view(ring.shape)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is visible and -inf elsewhere: made once, where bools are turned into it in
    each layer."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill(~visible, float("-inf"))


def chunk_mask(frames: int, chunk: int, left: int, *, ahead: bool = False) -> Tensor:
    """The definition: (frames, frames) bool, whether frame t (row) sees frame s (column).

    ahead  For the first layers, which also see the chunk after their own.
    """
    chunks = torch.arange(frames) // chunk
    distance = chunks[:, None] - chunks
    return (distance <= left) & (distance >= -int(ahead))
