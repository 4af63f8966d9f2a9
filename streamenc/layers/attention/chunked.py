"""A transformer over chunks of frames, which attend to their own chunk and to some before it.

This is how an encoder that was trained on whole clips runs on a stream without computing any frame
twice. Time is cut into chunks of C frames; a frame of chunk k sees all frames of the chunks from
k - left to k, those behind it in its own chunk too. So its look-ahead ends with the chunk in every
layer, where a mask that slides with each frame would add up its look-ahead layer by layer.

More look-ahead is given layer by layer: in each of the first `ahead` layers a frame of chunk k also
sees chunk k + 1, and is computed once that is there. Whole chunks later, nothing is computed twice
either, and the last layer's frames depend on the chunks up to k + ahead.

Or by computing frames twice: with `lookahead`, the frames behind a chunk are computed along with
it, seen by it alone, and computed again with their own chunk. That costs more, and is worth much
more where the last layers, too, were trained to see both ways (for Whisper it is measured).

There are no positions in the attention: wav2vec 2.0, HuBERT and Whisper add theirs before the first
layer. Therefore keys lie in their ring in any order. WavLM adds a bias by distance, which is laid
out as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import CannotLower
from streamenc.layers.attention.relative import Gate, RelativeBias
from streamenc.layers.attention.ring import InBlocks, InPlace, Relative, Ring
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue


class ChunkedTransformer(Streamed):
    """(batch, width, frames) -> (batch, len(outputs) * width, frames).

    The first step takes (1 + ahead) * chunk frames and gives `chunk` of them for each output (more
    where no output lies behind all look-ahead); later steps take and give whole chunks. The stream
    may end anywhere: its last chunk is a short one. The definition, for any length, is
    `chunk_mask` in each layer; `whole` is the same layers without any mask.

    left        How many chunks before its own a frame sees.
    ahead       In how many of the first layers it also sees the chunk after its own.
    lookahead   How many frames behind a chunk are computed along with it; the first step takes so
                many more, instead of `ahead` chunks.
    norm_first  Normalises what goes into each branch, instead of the sum after it.
    final_norm  Normalises the last layer's output.
    outputs     Which hidden states come out, one below the other: 0 is the input, n the output of
                layer n. All are of the same frames: those of early layers wait for the last one.
    distances   (buckets, largest distance) of a bias by distance in all layers, see RelativeBias;
                None where there is none.

    State: position (batch,) int64, in chunks; per layer keys and values in rings, (batch, heads,
    (left + 1) * chunk, head_dim), one chunk longer with look-ahead, and then input and queries of
    the chunk that waits for the next; hidden states that wait, (batch, frames, width); and the last
    `lookahead` frames of input, (batch, lookahead, width).
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
        lookahead: int = 0,
        norm_first: bool = True,
        final_norm: bool = False,
        norm_eps: float = 1e-5,
        outputs: Sequence[int] | None = None,
        distances: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        assert chunk > 0 <= left and 0 <= ahead <= layers and width % heads == 0
        assert lookahead >= 0 and not (lookahead and (ahead or distances))
        self.chunk, self.left, self.ahead, self.lookahead = chunk, left, ahead, lookahead
        self.outputs = (layers,) if outputs is None else tuple(outputs)
        assert all(0 <= n <= layers for n in self.outputs)
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                heads,
                feed_forward,
                norm_first,
                norm_eps,
                chunk + lookahead,
                gated=distances is not None,
            )
            for _ in range(layers)
        )
        self.relative: RelativeBias | None = None
        if distances is not None and layers:
            reach = (left + 1) * chunk - 1, (1 + bool(ahead)) * chunk - 1
            self.relative = RelativeBias(heads, *distances, reach)
        self.norm = nn.LayerNorm(width, eps=norm_eps) if final_norm else None

    @property
    def steps(self) -> Steps:
        chunk = self.chunk
        waiting = self.ahead * chunk + self.lookahead
        return Steps(chunk + waiting, chunk, (1 + self.ahead - self.lag) * chunk, chunk)

    def reach(self, first: int, last: int) -> Span:
        deepest = max(self.outputs)
        if not deepest:
            return first, last
        start = (first // self.chunk - deepest * self.left) * self.chunk
        stop = (last // self.chunk + 1 + self.lag) * self.chunk - 1
        return max(0, start), stop + self.lookahead

    @property
    def lag(self) -> int:
        """By how many chunks the outputs come later than the input."""
        return min(self.ahead, max(self.outputs))

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, width, _ = x.shape
        started = isinstance(state, tuple)
        if isinstance(state, tuple):
            position, layer_states, waiting, behind = state
            assert isinstance(layer_states, tuple) and isinstance(waiting, tuple)
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            layer_states, waiting = (None,) * len(self.layers), (None,) * len(self.outputs)
            behind = None
        assert isinstance(position, Tensor)

        x = x.transpose(1, 2)
        if isinstance(behind, Tensor):
            x = torch.cat((behind, x), dim=1)
        time = x.shape[1]
        if not time and not (started and self.ahead):
            return x.new_zeros(batch, len(self.outputs) * width, 0), state
        chunks, ragged = divmod(time - (0 if end else self.lookahead), self.chunk)
        assert end or (not ragged and chunks > (0 if started else self.ahead))
        chunks += bool(ragged)
        total = position * self.chunk + time
        behind = x[:, time - self.lookahead :].contiguous() if self.lookahead and not end else None
        x = self._spans(x, chunks)
        hidden, following = [x], []
        plan: InPlace | InBlocks | None = None
        table: Tensor | None = None
        for index, (layer, before) in enumerate(zip(self.layers, layer_states, strict=True)):
            assert isinstance(layer, EncoderLayer)
            if plan is None or index <= self.ahead:
                seen = position - min(index, self.ahead) if started else position
                plan = self._plan(x, seen, total, index < self.ahead, started, end)
                if self.relative is not None:
                    keys = plan.ring.window * self.chunk
                    table = plan.arranged(self.relative.table(self.chunk, keys))
            x, after = layer.step(x, before, plan, table, waits=index < self.ahead)
            hidden.append(x)
            following.append(after)
        if self.norm is not None:
            hidden[-1] = self.norm(hidden[-1])
        if self.lookahead:
            hidden = [self._own(h) for h in hidden]
        y, held = self._aligned(hidden, waiting, time, end)
        if end:
            return y, None
        return y, (position + chunks, tuple(following), held, behind)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        if self.ahead or self.relative is not None:
            raise CannotLower("chunks that wait for the next one, or a bias by distance")
        assert isinstance(state, tuple)
        position, layer_states, _, behind = state
        assert isinstance(position, Tensor) and isinstance(layer_states, tuple)
        span = self.chunk + self.lookahead
        spans = plan.spans(x, behind, self.chunk) if isinstance(behind, Tensor) else x
        hidden = [spans]
        for layer, before in zip(self.layers, layer_states, strict=True):
            assert isinstance(layer, EncoderLayer)
            x_now = layer.lower(plan, hidden[-1], before, position, self.chunk, span)
            hidden.append(x_now)
        if self.norm is not None:
            hidden[-1] = plan.norm(hidden[-1], self.norm)
        plan.advance(position, x.rows // self.chunk)
        wanted = [hidden[n] for n in self.outputs]
        if len(wanted) == 1 and not self.lookahead:
            return wanted[0]
        return plan.joined(wanted, self.chunk, span)

    def whole(self, x: Tensor) -> Tensor:
        """The published meaning: (batch, width, frames), all of which see each other."""
        x = x.transpose(1, 2)
        hidden = [x]
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer) and layer.gate is None
            q, k, v = layer.project(x)
            x = layer.combine(x, F.scaled_dot_product_attention(q, k, v))
            hidden.append(x)
        if self.norm is not None:
            hidden[-1] = self.norm(hidden[-1])
        return torch.cat([hidden[n] for n in self.outputs], dim=-1).transpose(1, 2)

    def _spans(self, x: Tensor, chunks: int) -> Tensor:
        """Frames as they are computed: padded to whole chunks, each with what it sees behind it,
        (batch, chunks * (chunk + lookahead), width)."""
        x = F.pad(x, (0, 0, 0, max(0, chunks * self.chunk + self.lookahead - x.shape[1])))
        if not self.lookahead:
            return x
        return x.unfold(1, self.chunk + self.lookahead, self.chunk).transpose(2, 3).flatten(1, 2)

    def _own(self, x: Tensor) -> Tensor:
        """The frames of the chunks alone, of what `_spans` gave."""
        spans = x.view(x.shape[0], -1, self.chunk + self.lookahead, x.shape[2])
        return spans[:, :, : self.chunk].flatten(1, 2)

    def _plan(
        self, x: Tensor, seen: Tensor, total: Tensor, ahead: bool, started: bool, end: bool
    ) -> InPlace | InBlocks:
        # A query sees its own chunk, those before it and, with look-ahead, the one after: a window
        # whose newest chunk is that one.
        window = self.left + 1 + ahead
        ring = Ring(window, window, chunk=self.chunk, beside=self.lookahead)
        new = x.shape[1] // (self.chunk + self.lookahead)
        if new == 1 and not end and (started or not ahead):
            return ring.in_place(seen, 1, x.dtype)
        queries = new + ahead * (started + end - 1)
        return ring.in_blocks(
            seen,
            new,
            queries,
            x.dtype,
            early=0 if started else int(ahead),
            total=total if end else None,
        )

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
    """Attention and a feed-forward with GELU, each with a bias and a residual connection.

    head_dim        Of each head; the width divided by the heads where None.
    attention_bias  Whether the projections of the attention have a bias.
    norm_bias       Whether the norms have one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        norm_first: bool,
        norm_eps: float,
        rows: int = 2,
        gated: bool = False,
        *,
        head_dim: int | None = None,
        attention_bias: bool = True,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.gate = Gate(heads, width // heads) if gated else None
        inner = heads * (width // heads if head_dim is None else head_dim)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps, bias=norm_bias)
        self.in_proj = Linear(width, 3 * inner, bias=attention_bias, rows=rows)
        self.out_proj = Linear(inner, width, bias=attention_bias, rows=rows)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps, bias=norm_bias)
        self.linear1 = Linear(width, feed_forward, bias=True, rows=rows)
        self.linear2 = Linear(feed_forward, width, bias=True, rows=rows)

    def step(
        self,
        x: Tensor,
        state: State,
        plan: InPlace | InBlocks,
        table: Tensor | None,
        *,
        waits: bool,
    ) -> tuple[Tensor, State]:
        """(batch, frames, width) -> the frames that see all they may, and the state.

        table  The bias by distance, as the plan arranges it; None where there is none.
        waits  Whether a chunk waits for the next one.

        State: keys and values; with look-ahead also input and queries of the chunk that waits.
        """
        q, k, v = self.project(x)
        if isinstance(state, tuple):
            keys, values, *held = state
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        else:
            (keys, values), held = plan.ring.empty(k), []
        if held:
            x_held, q_held = held
            assert isinstance(x_held, Tensor) and isinstance(q_held, Tensor)
            x, q = torch.cat((x_held, x), dim=1), torch.cat((q_held, q), dim=2)
        ready = plan.queries
        relative = None
        if self.gate is not None and table is not None:
            attending = x[:, :ready]
            normed = self.norm1(attending) if self.norm_first else attending
            relative = Relative(self.gate(normed), table)
        y, keys, values = plan.attend(q[:, :, :ready], k, v, keys, values, relative)
        after: State = (keys, values)
        if waits:
            after = (keys, values, x[:, ready:].contiguous(), q[:, :, ready:].contiguous())
        return self.combine(x[:, :ready], y), after

    def lower(
        self, plan: Plan, x: AnyValue, state: State, position: Tensor, chunk: int, span: int
    ) -> AnyValue:
        """The instructions of `step`, where nothing waits."""
        assert isinstance(state, tuple)
        keys, values = state
        assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        qkv = plan.linear(plan.norm(x, self.norm1) if self.norm_first else x, self.in_proj)
        y = plan.chunk_attention(qkv, position, keys, values, chunk=chunk, span=span)
        y = plan.linear(y, self.out_proj, residual=x)
        x = y if self.norm_first else plan.norm(y, self.norm1)
        y = plan.norm(x, self.norm2) if self.norm_first else x
        y = plan.linear(y, self.linear1, activation="gelu")
        y = plan.linear(y, self.linear2, residual=x)
        return y if self.norm_first else plan.norm(y, self.norm2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, time, width) -> queries, keys, values, each (batch, heads, time, head_dim)."""
        normed = self.norm1(x) if self.norm_first else x
        qkv = self.in_proj(normed).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what the heads attended to, (batch, heads, time, head_dim), and the feed-forward."""
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        if not self.norm_first:
            x = self.norm1(x)
        y: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x) if self.norm_first else x)))
        return y if self.norm_first else self.norm2(y)


def chunk_mask(frames: int, chunk: int, left: int, *, ahead: bool = False) -> Tensor:
    """The definition: (frames, frames) bool, whether frame t (row) sees frame s (column).

    ahead  For the first layers, which also see the chunk after their own.
    """
    chunks = torch.arange(frames) // chunk
    distance = chunks[:, None] - chunks
    return (distance <= left) & (distance >= -int(ahead))
