"""Layers over video: each frame alone, or causal along time with carried state.

They take and give (batch, time, channels, height, width), where models have time on axis 2: so a
layer that sees each frame alone folds batch and time into one axis without a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import InputError
from streamenc.layers.streamed import Prepared, Streamed
from streamenc.state import State

# The wavelet as the published models hold it, in float32: its rounding is part of what they give.
HAAR = (0.7071067690849304, 0.7071067690849304)


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

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.conv_t.step(self.conv_s(x), state, end=end)


class VideoResidual(Streamed):
    """Twice normalise, SiLU, convolve; added to the input.

    groups  Of the normalisation of images, which have convolutions within frames only; 0 for
            video, whose frames are normalised whole and whose convolutions reach along time.

    State: those of the two convolutions; None for images.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int = 0) -> None:
        super().__init__()
        images, groups = groups > 0, max(groups, 1)
        self.norm1 = FrameNorm(in_channels, groups)
        self.norm2 = FrameNorm(out_channels, groups)
        self.conv1, self.conv2 = (
            FrameConv(width, out_channels, 3) if images else Factorised(width, out_channels)
            for width in (in_channels, out_channels)
        )
        self.conv_shortcut = (
            FrameConv(in_channels, out_channels) if in_channels != out_channels else None
        )

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


class _Projections(nn.Module):
    """What both attentions have: one head over all channels, behind a normalisation."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.norm = FrameNorm(channels, groups)
        self.to_q = FrameConv(channels, channels)
        self.to_k = FrameConv(channels, channels)
        self.to_v = FrameConv(channels, channels)
        self.to_out = FrameConv(channels, channels)

    def projected(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (..., channels).

        Contiguous, as the fast kernels of attention want them: with channels that lie apart, torch
        writes scaled copies of all keys.
        """
        places = places.contiguous()
        q, k, v = (_pointwise(places, conv) for conv in (self.to_q, self.to_k, self.to_v))
        return q, k, v


def _pointwise(x: Tensor, conv: FrameConv) -> Tensor:
    """A convolution of kernel 1, over (..., channels)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class SpatialAttention(_Projections):
    """Every place of a frame sees all places of the same frame."""

    def forward(self, x: Tensor) -> Tensor:
        # (frames, 1, places, channels)
        q, k, v = self.projected(self.norm(x).flatten(0, 1).flatten(2).transpose(1, 2)[:, None])
        y = _pointwise(F.scaled_dot_product_attention(q, k, v), self.to_out)
        return x + y[:, 0].transpose(1, 2).reshape(x.shape)


class TemporalAttention(_Projections, Streamed):
    """Every place sees the same place of the last `window` frames, its own among them.

    No positions are added. With `growing`, the stream may have no more than `window` frames: so all
    of them are seen, as in attention without a window, and the ring never turns.

    Steps of up to `max_step` frames write their keys and values ahead, in place, into slots that no
    query can see any more; longer ones return new rings.

    State: position (batch,) int64; keys and values (batch, places, capacity, channels).
    """

    def __init__(self, channels: int, window: int, *, max_step: int = 1, growing: bool = False):
        super().__init__(channels)
        self.window, self.growing = window, growing
        self.max_step = window if growing else max_step
        self.capacity = window if growing else window + max_step - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, time, channels, height, width = x.shape
        if isinstance(state, tuple):
            position, keys, values = state
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            shape = (batch, height * width, self.capacity, channels)
            keys, values = x.new_zeros(shape), x.new_zeros(shape)
        assert isinstance(position, Tensor)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        filled = self._filled(position, time) if self.growing else self.capacity
        # (batch, places, time, channels)
        q, k, v = self.projected(self.norm(x).flatten(3).permute(0, 3, 1, 2))
        now = position[:, None] + torch.arange(time, device=x.device)
        attend = self._ahead if time <= self.max_step else self._in_blocks
        y, keys, values = attend(q, k, v, keys, values, now, filled)
        y = _pointwise(y, self.to_out).permute(0, 2, 3, 1).reshape(x.shape)
        return x + y, (position + time, keys, values)

    def _filled(self, position: Tensor, time: int) -> int:
        """How many slots hold anything in any lane. Raises InputError where there is no room."""
        # On a GPU a look at the position would wait for the device; streams count for themselves.
        first, last = (0, self.window) if position.is_cuda else map(int, position.aminmax())
        # An idle lane that is full is computed along: nobody will ask it for more.
        if first + time > self.window:
            raise InputError(
                f"{first + time} frames at the attention along time; mode='offline' was loaded for "
                f"{self.window}: load with a higher limit, or with mode='window'"
            )
        return min(last + time, self.window)

    def _ahead(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        now: Tensor,
        filled: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        slots = self._slots(now, k)
        keys.scatter_(2, slots, k)
        values.scatter_(2, slots, v)
        # Slot s holds the newest frame whose number is s modulo the capacity.
        newest = now[:, -1:]
        numbers = torch.arange(filled, device=now.device)
        held = newest - (newest - numbers) % self.capacity
        seen = self._seen(now, held)
        y = F.scaled_dot_product_attention(q, keys[:, :, :filled], values[:, :, :filled], seen)
        return y, keys, values

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, now: Tensor, _: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        span = self.window - 1
        before = now[:, :1] - span + torch.arange(span, device=now.device)
        past = self._slots(before, k)
        k = torch.cat((keys.gather(2, past), k), dim=2)
        v = torch.cat((values.gather(2, past), v), dim=2)
        held = torch.cat((before, now), dim=1)
        parts = []
        size = max(self.window, 16)
        for start in range(0, now.shape[1], size):
            stop = min(start + size, now.shape[1])
            seen = slice(start, stop + span)
            mask = self._seen(now[:, start:stop], held[:, seen])
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, seen], v[:, :, seen], mask
                )
            )
        kept = min(self.capacity, held.shape[1])
        slots = self._slots(held[:, -kept:], k)
        # New rings: these writes reach slots that a lane which is not committed still needs.
        keys = keys.scatter(2, slots, k[:, :, -kept:])
        values = values.scatter(2, slots, v[:, :, -kept:])
        return torch.cat(parts, dim=2), keys, values

    def _slots(self, frames: Tensor, like: Tensor) -> Tensor:
        slots = (frames % self.capacity)[:, None, :, None]
        return slots.expand(-1, like.shape[1], -1, like.shape[3])

    def _seen(self, now: Tensor, held: Tensor) -> Tensor:
        """(batch, 1, queries, keys) bool."""
        back = now[:, :, None] - held[:, None, :]
        return ((back >= 0) & (back < self.window) & (held >= 0)[:, None, :])[:, None]


class Wavelet(Streamed):
    """What both directions of the Haar transform have: the axes that they work along."""

    wavelets: Tensor

    def __init__(self, size: int, *, images: bool = False) -> None:
        super().__init__()
        self.size = size
        self.axes = (4, 3) if images else (1, 3, 4)
        self.register_buffer("wavelets", torch.tensor(HAAR))


class Patch(Wavelet):
    """A Haar wavelet transform: blocks of `size` pixels become channels.

    `log2(size)` levels; each halves its axes into low and high parts and makes channels of them,
    along time, height and width (or width and height for images). The stream's first frame stands
    for a block of its own: it is repeated.

    State: (), once the stream has begun.
    """

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
