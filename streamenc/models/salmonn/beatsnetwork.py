"""The network of BEATs on a stream: its shape, patches of a spectrogram, and its transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.attention.chunked import EncoderLayer
from streamenc.layers.attention.relative import RelativeBias
from streamenc.layers.linear import Linear
from streamenc.layers.positions import PositionalConv
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

BANDS = 128
# Of the log-mel frames of AudioSet, by which all are normalised: (x - mean) / (2 * deviation).
MEAN, DEVIATION = 15.41663, 6.55582


@dataclass(frozen=True, slots=True)
class BeatsShape:
    """What the network is made of; the defaults are those of all published models.

    patch      Log-mel frames, and bands, of a patch.
    embedding  Channels of a patch before it is brought to the transformer's width.
    distances  (buckets, largest distance) of the bias by distance.
    """

    patch: int = 16
    embedding: int = 512
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    layers: int = 12
    position_kernel: int = 128
    position_groups: int = 16
    distances: tuple[int, int] = (320, 800)

    @property
    def rows(self) -> int:
        """Patches of one time, which lie above each other."""
        return BANDS // self.patch


class Patches(Streamed):
    """Log-mel frames (batch, bands, frames) -> patches (batch, width, patches), `rows` for each
    `patch` frames: those of one time side by side, the lowest bands first.

    Frames at the end that fill no patch are dropped.
    """

    def __init__(self, shape: BeatsShape) -> None:
        super().__init__()
        self.patch, self.rows = shape.patch, shape.rows
        self.weight = nn.Parameter(torch.empty(shape.embedding, shape.patch**2))
        self.norm = nn.LayerNorm(shape.embedding)
        self.project: Linear | None = None
        if shape.embedding != shape.width:
            self.project = Linear(shape.embedding, shape.width, bias=True, rows=shape.rows)

    @property
    def steps(self) -> Steps:
        return Steps(self.patch, self.patch, self.rows, self.rows)

    def reach(self, first: int, last: int) -> Span:
        return first // self.rows * self.patch, (last // self.rows + 1) * self.patch - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, frames = x.shape
        columns, rest = divmod(frames, self.patch)
        assert end or not rest, f"{frames} frames in mid-stream; a patch has {self.patch}"
        x = ((x - MEAN) / (2 * DEVIATION)).to(self.weight.dtype)
        x = x[:, : self.rows * self.patch, : columns * self.patch]
        x = x.reshape(batch, self.rows, self.patch, columns, self.patch)
        x = x.permute(0, 3, 1, 4, 2).reshape(batch, columns * self.rows, self.patch**2)
        x = self.norm(F.linear(x, self.weight))
        if self.project is not None:
            x = self.project(x)
        return x.transpose(1, 2), None


class DeepNormLayer(EncoderLayer):
    """Post-norm with what goes past a branch made stronger, so that many layers can be trained
    (arXiv 2203.00555), and attention with a bias by distance."""

    def __init__(self, shape: BeatsShape, rows: int) -> None:
        super().__init__(shape.width, shape.heads, shape.hidden, False, 1e-5, rows, gated=True)
        self.alpha = (2 * shape.layers) ** 0.25

    def whole(self, x: Tensor, table: Tensor, there: Tensor) -> Tensor:
        """(batch, positions, width), of which those that are not `there` are seen by none.

        table  Bias by distance, (heads, positions, positions).
        there  (batch, 1, 1, positions): 0, or minus infinity.
        """
        q, k, v = self.project(x)
        assert self.gate is not None
        bias = torch.addcmul(there, self.gate(q.transpose(1, 2).flatten(2)), table)
        return self.combine(x, F.scaled_dot_product_attention(q, k, v, bias))

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        y = self.out_proj(attended.transpose(1, 2).reshape(x.shape))
        x = self.norm1(self.alpha * x + y)
        y = self.linear2(F.gelu(self.linear1(x)))
        normed: Tensor = self.norm2(self.alpha * x + y)
        return normed


class BeatsTransformer(nn.Module):
    """The published transformer over a window: positions by a convolution, then the layers.

    outputs  Hidden states that come out, one below the other: 0 is what the first layer takes, n
             what layer n gives.
    """

    def __init__(self, shape: BeatsShape, window: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        kernel, groups = shape.position_kernel, shape.position_groups
        self.positions = PositionalConv(shape.width, kernel, groups, None)
        self.norm = nn.LayerNorm(shape.width)
        self.relative: RelativeBias | None = None
        if max(outputs):
            reach = (window - 1, window - 1)
            self.relative = RelativeBias(shape.heads, *shape.distances, reach)
        self.layers = nn.ModuleList(DeepNormLayer(shape, window) for _ in range(max(outputs)))

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        """(batch, width, positions), zeros before the last `count` (batch,) -> (batch, outputs *
        width, positions)."""
        positions = x.shape[-1]
        x = self.norm(self.positions(x).transpose(1, 2))
        hidden = [x]
        if self.relative is not None:
            table = self.relative.table(positions, positions)
            missing = torch.arange(positions, device=x.device) < positions - count[:, None]
            there = x.new_zeros(missing.shape).masked_fill(missing, float("-inf"))
            for layer in self.layers:
                assert isinstance(layer, DeepNormLayer)
                hidden.append(layer.whole(hidden[-1], table, there[:, None, None]))
        return torch.cat([hidden[n] for n in self.outputs], dim=-1).transpose(1, 2)
