"""The Haar wavelet transform of video, by blocks of pixels, and its inverse.

Both take and give (batch, time, channels, height, width).
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

# The wavelet as the published models hold it, in float32: its rounding is part of what they give.
HAAR = (0.7071067690849304, 0.7071067690849304)


class Wavelet(Streamed):
    """What both directions of the Haar transform have: the axes that they work along."""

    wavelets: Tensor

    def __init__(self, size: int, *, images: bool = False) -> None:
        super().__init__()
        self.size = size
        self.axes = (4, 3) if images else (1, 3, 4)
        self.register_buffer("wavelets", torch.tensor(HAAR))

    @property
    def frames(self) -> int:
        """Of a block: one for images."""
        return self.size if 1 in self.axes else 1


class Patch(Wavelet):
    """A Haar wavelet transform: blocks of `size` pixels become channels.

    `log2(size)` levels; each halves its axes into low and high parts and makes channels of them,
    along time, height and width (or width and height for images). The stream's first frame stands
    for a block of its own: it is repeated.

    State: (), once the stream has begun.
    """

    @property
    def steps(self) -> Steps:
        return Steps(hop=self.frames)

    def reach(self, first: int, last: int) -> Span:
        return max(0, (first - 1) * self.frames + 1), last * self.frames

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and 1 in self.axes:
            x = torch.cat((x[:, :1].expand(-1, self.size - 1, -1, -1, -1), x), dim=1)
        a, b = self.wavelets * 0.5**0.5
        for _ in range(self.size.bit_length() - 1):
            parts = [x]
            for axis in self.axes:
                halves = []
                for part in parts:
                    pairs = (*part.shape[:axis], -1, 2, *part.shape[axis + 1 :])
                    even, odd = part.reshape(pairs).unbind(axis + 1)
                    halves += [b * even + a * odd, a * even - b * odd]
                parts = halves
            x = torch.cat(parts, dim=2)
        return x, ()


class Unpatch(Wavelet):
    """The inverse of `Patch`; of the stream's first block only the last frame is given.

    State: (), once the stream has begun.
    """

    @property
    def steps(self) -> Steps:
        return Steps(hop_out=self.frames)

    def reach(self, first: int, last: int) -> Span:
        return -(-first // self.frames), -(-last // self.frames)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        a, b = self.wavelets * 2**0.5
        for _ in range(self.size.bit_length() - 1):
            parts = list(x.chunk(2 ** len(self.axes), dim=2))
            for axis in reversed(self.axes):
                wholes = []
                for low, high in zip(parts[::2], parts[1::2], strict=True):
                    pair = (b * low + a * high, a * low - b * high)
                    wholes.append(torch.stack(pair, dim=axis + 1).flatten(axis, axis + 1))
                parts = wholes
            (x,) = parts
        if state is None and 1 in self.axes:
            x = x[:, self.size - 1 :]
        return x, ()
