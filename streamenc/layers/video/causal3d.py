"""Convolutions over video: within each frame, or causal along time with carried state.

They take and give (batch, time, channels, height, width), where models have time on axis 2: so a
layer that sees each frame alone folds batch and time into one axis without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.streamed import (
    Exportable,
    Prepared,
    Span,
    Streamed,
    reach_through,
    steps_through,
)
from streamenc.spec import Steps
from streamenc.state import State

# From so many numbers up, windows are convolved one by one, without a copy of each; smaller ones in
# one batch, which reads the kernel once.
ONE_BY_ONE = 1 << 19
# Up to so many places of all frames together, a convolution is computed on the CPU as a product
# with its weight, whose size decides there.
PRODUCT_PLACES = 64


def each_frame(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies `fn`, on (frames, channels, height, width), to all frames at once."""
    y = fn(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


class FrameConv(nn.Module):
    """A convolution within each frame.

    A kernel of 3 keeps the size by one row and column of zeros on each side; with stride 2 it
    halves an even size, with zeros on the right and at the bottom only.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.stride = stride
        self.padding = kernel // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.pad(x, (0, 1, 0, 1))
        return each_frame(
            lambda frames: F.conv2d(frames, self.weight, self.bias, self.stride, self.padding), x
        )


class FrameNorm(nn.Module):
    """Group normalisation of each frame alone, so that no frame sees a later one."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(
            lambda frames: F.group_norm(frames, self.groups, self.weight, self.bias, 1e-6), x
        )


class ChannelNorm(nn.Module):
    """Scales the channels of each place to unit root mean square, then by `gamma`; one per place.

    x / max(|x|, 1e-12) * sqrt(channels) * gamma, in float32 at least.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if torch.finfo(x.dtype).bits < 32 else x
        length = torch.linalg.vector_norm(wide, dim=2, keepdim=True).clamp_min(1e-12)
        y: Tensor = (wide / length).to(x.dtype)
        y *= (self.gamma * math.sqrt(len(self.gamma)))[:, None, None]
        return y


class CausalConv3d(Streamed, Exportable):
    """A convolution of 3 x 3 x 3: output t sees the frames up to t * stride.

    Around each frame stand zeros, and before the stream's start too, or with `repeated` its first
    frame. With stride 2, along all axes, steps are 1 frame first, then even numbers of them.

    State: the last 3 - stride frames, (batch, 3 - stride, channels, height, width).
    """

    KERNEL = 3

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, repeated: bool = False
    ) -> None:
        super().__init__()
        # The kernel's frames before its channels, as both lie in a window of frames.
        shape = (out_channels, self.KERNEL, in_channels, self.KERNEL, self.KERNEL)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.stride, self.repeated = stride, repeated

    @property
    def steps(self) -> Steps:
        return Steps(hop=self.stride)

    def reach(self, first: int, last: int) -> Span:
        return max(0, first * self.stride - self.KERNEL + 1), last * self.stride

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, Tensor):
            past = state
        else:
            alone = x[:, :1] if self.repeated else torch.zeros_like(x[:, :1])
            past = alone.expand(-1, self.KERNEL - 1, -1, -1, -1)
        frames = torch.cat((past, x), dim=1)
        # The frames of a window as so many more channels: on a CPU that is faster than a
        # three-dimensional convolution.
        windows = frames.unfold(1, self.KERNEL, self.stride).movedim(-1, 2).flatten(2, 3)
        weight = self.weight.flatten(1, 2)
        if self._few(windows):
            y = self._product(windows)
        elif windows[:1, :1].numel() < ONE_BY_ONE:
            y = F.conv2d(windows.flatten(0, 1), weight, self.bias, self.stride, 1)
            y = y.reshape(len(x), -1, *y.shape[1:])
        else:
            outputs = [
                F.conv2d(window, weight, self.bias, self.stride, 1) for window in windows.unbind(1)
            ]
            y = torch.stack(outputs, dim=1)
        return y, frames[:, self.stride - self.KERNEL :].contiguous()

    def _few(self, windows: Tensor) -> bool:
        """Whether a product with the weight is the faster way to so many places."""
        if self._exported or windows.device.type != "cpu":
            return False
        batch, time, _, height, width = windows.shape
        return batch * time * height * width <= PRODUCT_PLACES * self.stride**2

    def _product(self, windows: Tensor) -> Tensor:
        batch, time, _, *size = windows.shape
        around = F.unfold(windows.flatten(0, 1), self.KERNEL, padding=1, stride=self.stride)
        columns = around.transpose(0, 1).flatten(1)
        y = torch.addmm(self.bias[:, None], self.weight.flatten(1), columns)
        height, width = (-(-length // self.stride) for length in size)
        return y.view(-1, batch, time, height, width).permute(1, 2, 0, 3, 4).contiguous()


class TemporalConv(Streamed, Prepared):
    """A causal convolution of 3 frames at each place: output t sees frames up to t * stride.

    Before the stream's start stands its first frame. With stride 2, steps are 1 frame first, then
    even numbers of them.

    State: the last 3 - stride frames, (batch, 3 - stride, channels, height, width).
    """

    KERNEL = 3

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.KERNEL))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.stride = stride

    @property
    def steps(self) -> Steps:
        return Steps(hop=self.stride)

    def reach(self, first: int, last: int) -> Span:
        return max(0, first * self.stride - self.KERNEL + 1), last * self.stride

    def prepare(self) -> None:
        """Lays the weight out as `convolve` multiplies it, where it lies: no copy at each step."""
        self.weight.data = self.weight.data.transpose(1, 2).contiguous().transpose(1, 2)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        windows, state = self.windows(x, state)
        return self.convolve(windows), state

    def windows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """What each output sees, (batch, outputs, 3, channels, height, width); a view."""
        before = state if isinstance(state, Tensor) else x[:, :1].expand(-1, 2, -1, -1, -1)
        padded = torch.cat((before, x), dim=1)
        reach = padded.shape[1] - self.KERNEL + 1
        assert (reach - 1) % self.stride == 0, f"{x.shape[1]} frames; stride is {self.stride}"
        windows = padded.unfold(1, self.KERNEL, self.stride).movedim(-1, 2)
        return windows, padded[:, self.stride - self.KERNEL :].contiguous()

    def convolve(self, windows: Tensor) -> Tensor:
        # One product over all three frames is faster than a three-dimensional convolution. Frames
        # lie one after the other, so that those of a window are a matrix already: of one lane, and
        # of one output for each lane, nothing is copied.
        batch, outputs, _, _, height, width = windows.shape
        columns = windows.flatten(2, 3).flatten(3).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1)
        y = torch.baddbmm(self.bias[:, None], weight.expand(len(columns), -1, -1), columns)
        return y.view(batch, outputs, -1, height, width)


class Factorised(Streamed):
    """A convolution within frames, then one along time."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_s = FrameConv(in_channels, out_channels, 3)
        self.conv_t = TemporalConv(out_channels, out_channels)

    @property
    def steps(self) -> Steps:
        return self.conv_t.steps

    def reach(self, first: int, last: int) -> Span:
        return self.conv_t.reach(first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.conv_t.step(self.conv_s(x), state, end=end)


class VideoResidual(Streamed):
    """Twice normalise, SiLU, convolve; added to the input.

    norm, conv  Make the layers, from their channels; a convolution may be Streamed, or see each
                frame alone.
    shortcut    Makes what gives the input other channels, where there are others.

    State: those of the two convolutions; None for those within frames.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Callable[[int], nn.Module],
        conv: Callable[[int, int], nn.Module],
        shortcut: Callable[[int, int], nn.Module] = FrameConv,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(in_channels), norm(out_channels)
        self.conv1, self.conv2 = (
            conv(width, out_channels) for width in (in_channels, out_channels)
        )
        self.conv_shortcut = (
            shortcut(in_channels, out_channels) if in_channels != out_channels else None
        )

    @property
    def steps(self) -> Steps:
        return steps_through((self.conv1, self.conv2)).beside(Steps())

    def reach(self, first: int, last: int) -> Span:
        return reach_through((self.conv1, self.conv2), first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        before = state if isinstance(state, tuple) else (None, None)
        # In place where a tensor is nobody else's: pages of new memory cost as much as the sums.
        y, first = _stepped(self.conv1, F.silu(self.norm1(x), inplace=True), before[0], end)
        y, second = _stepped(self.conv2, F.silu(self.norm2(y), inplace=True), before[1], end)
        y += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return y, (first, second)


def _stepped(conv: nn.Module, x: Tensor, state: State, end: bool) -> tuple[Tensor, State]:
    if isinstance(conv, Streamed):
        return conv.step(x, state, end=end)
    return conv(x), None


class Downsample(Streamed):
    """Halves height and width, or time, or both: a strided convolution plus an average.

    State: the last frame where time is halved, else None.
    """

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = FrameConv(channels, channels, 3, stride=2) if space else None
        self.conv2 = TemporalConv(channels, channels, stride=2) if time else None
        self.conv3 = FrameConv(channels, channels)

    @property
    def steps(self) -> Steps:
        return Steps() if self.conv2 is None else self.conv2.steps

    def reach(self, first: int, last: int) -> Span:
        return (first, last) if self.conv2 is None else self.conv2.reach(first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if self.conv1 is not None:
            # The zeros that the convolution has on the right are cut off by the average.
            y: Tensor = self.conv1(x)
            y += each_frame(lambda frames: F.avg_pool2d(frames, 2), x)
            x = y
        if self.conv2 is not None:
            windows, state = self.conv2.windows(x, state)
            x = self.conv2.convolve(windows)
            x += (windows[:, :, 1] + windows[:, :, 2]) / 2
        return self.conv3(x), state


class Upsample(Streamed):
    """Doubles time, or height and width, or both: repeats, then adds a convolution of that.

    The stream's first frame stays a single one, as frame 0 stands for itself alone.

    State: that of the convolution along time, else None.
    """

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = TemporalConv(channels, channels) if time else None
        self.conv2 = FrameConv(channels, channels, 3) if space else None
        self.conv3 = FrameConv(channels, channels)

    @property
    def steps(self) -> Steps:
        return Steps() if self.conv1 is None else Steps(hop_out=2).then(self.conv1.steps)

    def reach(self, first: int, last: int) -> Span:
        if self.conv1 is None:
            return first, last
        start, stop = self.conv1.reach(first, last)
        # Of the repeated frames, 2 t - 1 and 2 t are frame t.
        return ((start or 0) + 1) // 2, (stop + 1) // 2

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if self.conv1 is not None:
            x = x.repeat_interleave(2, dim=1)
            if state is None:
                x = x[:, 1:]
            y, state = self.conv1.step(x, state, end=end)
            y += x
            x = y
        if self.conv2 is not None:
            x = doubled(x)
            z: Tensor = self.conv2(x)
            z += x
            x = z
        return self.conv3(x), state


class ImageUpsample(nn.Module):
    """Doubles height and width: repeats, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(doubled(x))
        return y


class ImageDownsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times."""
    return x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
