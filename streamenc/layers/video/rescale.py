"""Fewer frames and pixels, and more: strided convolutions, and shortcuts that move pixels.

A stream's first frame stands for itself alone: it is never joined with another one, nor doubled.
They take and give (batch, time, channels, height, width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamenc.layers.streamed import Span, Streamed
from streamenc.layers.video.causal3d import FrameConv, TemporalConv, doubled
from streamenc.spec import Steps
from streamenc.state import State


class StridedDown(Streamed):
    """Halves height and width by a convolution, and time by another one behind it, or not.

    The first frame is not convolved along time: it goes through as it is.

    State: the last frame before the convolution along time, else None.
    """

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, stride=2)
        self.time_conv = TemporalConv(channels, channels, stride=2) if time else None

    @property
    def steps(self) -> Steps:
        return Steps() if self.time_conv is None else self.time_conv.steps

    def reach(self, first: int, last: int) -> Span:
        return (first, last) if self.time_conv is None else self.time_conv.reach(first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        x = self.conv(x)
        if self.time_conv is None:
            return x, None
        if state is not None:
            return self.time_conv.step(x, state, end=end)
        alone, x = x[:, :1], x[:, 1:]
        if not x.shape[1]:
            return alone, alone.clone()
        y, state = self.time_conv.step(x, alone, end=end)
        return torch.cat((alone, y), dim=1), state


class RepeatedUp(Streamed):
    """Doubles time or not, then height and width: repeats each pixel, and convolves that.

    Each frame but the first becomes two by a convolution along time of twice the channels, which
    does not see the first one: zeros stand in its place.

    State: the last 2 frames of what that convolution saw, else None.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool) -> None:
        super().__init__()
        self.conv = FrameConv(in_channels, out_channels, 3)
        self.time_conv = TemporalConv(in_channels, 2 * in_channels) if time else None

    @property
    def steps(self) -> Steps:
        return Steps() if self.time_conv is None else Steps(hop_out=2)

    def reach(self, first: int, last: int) -> Span:
        if self.time_conv is None:
            return first, last
        frame = (first + 1) // 2
        start = self.time_conv.reach(frame, frame)[0] or 0
        return (max(1, start) if frame else 0), (last + 1) // 2

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if self.time_conv is not None:
            x, state = self._in_time(self.time_conv, x, state)
        y: Tensor = self.conv(doubled(x))
        return y, state

    def _in_time(self, conv: TemporalConv, x: Tensor, state: State) -> tuple[Tensor, State]:
        alone = None
        if state is None:
            alone, x = x[:, :1], x[:, 1:]
            state = torch.zeros_like(alone).repeat(1, conv.KERNEL - 1, 1, 1, 1)
            if not x.shape[1]:
                return alone, state
        y, state = conv.step(x, state)
        # The first half of the channels is the earlier frame.
        y = y.view(*y.shape[:2], 2, -1, *y.shape[3:]).flatten(1, 2)
        return (y if alone is None else torch.cat((alone, y), dim=1)), state


class FoldedDown(Streamed):
    """Moves the pixels of a block into its channels, and gives means of these.

    A block is 1 or 2 frames of 1 x 1 or 2 x 2 pixels; before the first frame stand zeros, or with
    `repeated` that frame. Shortcuts of residual autoencoders (DC-AE, arXiv 2410.10733), along time
    too.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, space: int, time: int, repeated: bool = False
    ) -> None:
        super().__init__()
        if in_channels * time * space**2 % out_channels:
            raise ValueError(f"{in_channels} channels in {time}x{space}x{space} to {out_channels}")
        self.out_channels, self.space, self.time = out_channels, space, time
        self.repeated = repeated

    @property
    def steps(self) -> Steps:
        return Steps(hop=self.time)

    def reach(self, first: int, last: int) -> Span:
        return max(0, (first - 1) * self.time + 1), last * self.time

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        # A first step has one frame more than whole blocks, and only a first step.
        if missing := -x.shape[1] % self.time:
            alone = x[:, :1] if self.repeated else torch.zeros_like(x[:, :1])
            x = torch.cat((alone.expand(-1, missing, -1, -1, -1), x), dim=1)
        batch, time, channels, height, width = x.shape
        side = self.space
        blocks = x.reshape(
            batch, time // self.time, self.time, channels, height // side, side, width // side, side
        ).permute(0, 1, 3, 2, 5, 7, 4, 6)
        grouped = blocks.reshape(*blocks.shape[:2], self.out_channels, -1, *blocks.shape[-2:])
        return grouped.mean(dim=3), None


class UnfoldedUp(Streamed):
    """The way back of `FoldedDown`: repeats channels, and moves them into blocks of pixels.

    Of the first frame's block, the last frame alone is kept.

    State: (), which tells a stream that has begun.
    """

    def __init__(self, in_channels: int, out_channels: int, *, space: int, time: int) -> None:
        super().__init__()
        self.repeats, rest = divmod(out_channels * time * space**2, in_channels)
        if rest:
            raise ValueError(f"{in_channels} channels to {out_channels} in {time}x{space}x{space}")
        self.out_channels, self.space, self.time = out_channels, space, time

    @property
    def steps(self) -> Steps:
        return Steps(hop_out=self.time)

    def reach(self, first: int, last: int) -> Span:
        return -(-first // self.time), -(-last // self.time)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, time, _, height, width = x.shape
        side = self.space
        blocks = x.repeat_interleave(self.repeats, dim=2).reshape(
            batch, time, self.out_channels, self.time, side, side, height, width
        )
        y = blocks.permute(0, 1, 3, 2, 6, 4, 7, 5).reshape(
            batch, time * self.time, self.out_channels, height * side, width * side
        )
        return (y[:, self.time - 1 :] if state is None else y), ()


class Folded(nn.Module):
    """Pixels of `size` x `size` as channels: colours outside, then columns, then rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        batch, time, colours, height, width = x.shape
        size = self.size
        blocks = x.reshape(batch, time, colours, height // size, size, width // size, size)
        return blocks.permute(0, 1, 2, 6, 4, 3, 5).reshape(
            batch, time, colours * size**2, height // size, width // size
        )


class Unfolded(nn.Module):
    """The way back of `Folded`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        batch, time, channels, height, width = x.shape
        size = self.size
        blocks = x.reshape(batch, time, channels // size**2, size, size, height, width)
        return blocks.permute(0, 1, 2, 5, 4, 6, 3).reshape(
            batch, time, channels // size**2, height * size, width * size
        )
