"""The window-level Q-Former of SALMONN: a few vectors for each third of a second of features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

BERT_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class QFormerShape:
    """What it is made of; the defaults are those of the published model of 13 B parameters.

    speech, audio  Channels of Whisper's states, and of BEATs' features.
    window   Frames that the queries of one window see.
    queries  Vectors that come of a window.
    out      Channels of these: of the language model that reads them.
    """

    speech: int = 1280
    audio: int = 768
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    layers: int = 2
    window: int = 17
    queries: int = 1
    out: int = 5120


class QFormer(Streamed):
    """Features (batch, speech + audio, frames), the two side by side -> vectors (batch, out,
    vectors).

    Each window of frames is seen by learnt queries, alike in all windows, which attend to each
    other and to the frames. Frames at the end that fill no window are dropped.
    """

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.shape = shape
        self.norm_speech, self.norm_audio = nn.LayerNorm(shape.speech), nn.LayerNorm(shape.audio)
        self.queries = nn.Parameter(torch.empty(shape.queries, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=BERT_EPS)
        self.layers = nn.ModuleList(QFormerLayer(shape) for _ in range(shape.layers))
        self.project = Linear(shape.width, shape.out, bias=True)

    @property
    def steps(self) -> Steps:
        s = self.shape
        return Steps(s.window, s.window, s.queries, s.queries)

    def reach(self, first: int, last: int) -> Span:
        s = self.shape
        return first // s.queries * s.window, (last // s.queries + 1) * s.window - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert end or not x.shape[-1] % self.shape.window
        sizes = [self.shape.speech, self.shape.audio]
        speech, audio = torch.split(x.transpose(1, 2), sizes, dim=-1)
        fused = torch.cat((self.norm_speech(speech), self.norm_audio(audio)), dim=-1)
        return self.vectors(fused), None

    def of_clip(self, speech: Tensor, audio: Tensor) -> Tensor:
        """Of whole clips, (batch, channels, frames) each: where the audio has fewer frames, zeros
        follow it, behind its normalisation."""
        seen = self.norm_audio(audio.transpose(1, 2))
        seen = F.pad(seen, (0, 0, 0, speech.shape[-1] - seen.shape[1]))
        return self.vectors(torch.cat((self.norm_speech(speech.transpose(1, 2)), seen), dim=-1))

    def vectors(self, fused: Tensor) -> Tensor:
        """(batch, frames, channels), normalised -> (batch, out, vectors)."""
        s, batch = self.shape, fused.shape[0]
        count = fused.shape[1] // s.window
        if not count:
            return fused.new_zeros(batch, s.out, 0)
        frames = fused[:, : count * s.window].reshape(batch * count, s.window, fused.shape[2])
        x = self.norm(self.queries).expand(batch * count, -1, -1)
        for layer in self.layers:
            x = layer(x, frames)
        y: Tensor = self.project(x)
        return y.reshape(batch, count * s.queries, s.out).transpose(1, 2)


class QFormerLayer(nn.Module):
    """The path of the queries through a layer of a BERT with cross-attention."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        width = shape.width
        self.attention = QFormerAttention(width, width, shape.heads)
        self.crossattention = QFormerAttention(width, shape.speech + shape.audio, shape.heads)
        self.linear1 = Linear(width, shape.hidden, bias=True)
        self.linear2 = Linear(shape.hidden, width, bias=True)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x), frames)
        normed: Tensor = self.norm(x + self.linear2(F.gelu(self.linear1(x))))
        return normed


class QFormerAttention(nn.Module):
    """Attention to others or to oneself, added and normalised."""

    def __init__(self, width: int, seen: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=True)
        self.key, self.value = (Linear(seen, width, bias=True) for _ in range(2))
        self.out_proj = Linear(width, width, bias=True)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self._divided((self.query(x), self.key(seen), self.value(seen)))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        normed: Tensor = self.norm(x + self.out_proj(y))
        return normed

    def _divided(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """(batch, time, width) -> (batch, heads, time, head_dim)."""
        return [t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in tensors]
