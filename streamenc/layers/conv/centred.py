"""Convolutions that see as far ahead as behind: what comes of the published ones over the whole
clip, zeros before and behind it, as soon as the input that it depends on is there.

The codecs of the DAC family are made of them. Their look-ahead is finite, so a stream comes to the
same as the clip, only later.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.layers.conv.causal import CausalConvTranspose1d, ValidConv1d
from streamenc.layers.streamed import Span
from streamenc.spec import Steps
from streamenc.state import State


class CentredConv1d(ValidConv1d):
    """torch.nn.Conv1d with `padding` zeros at both ends of the stream: output t sees inputs
    t * stride - padding to t * stride - padding + (kernel - 1) * dilation.

    N inputs give (N + 2 * padding - span) // stride + 1 outputs, where span is (kernel - 1) *
    dilation + 1; a tail that fills no kernel is dropped.

    padding  None: so many that a stride of 1 and an odd kernel keep the length.

    State: the inputs that the next step still sees, (batch, in_channels, span - stride); None where
    that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.padding = (kernel_size - 1) * dilation // 2 if padding is None else padding
        span = self.context + stride
        if not 0 <= self.padding < span or self.context < 0 or self.padding and not self.context:
            raise ValueError(
                f"padding of {self.padding} around kernels over {span} positions, {stride} from "
                "one to the next; wanted less padding than a kernel, kernels that touch, and "
                "kernels that overlap where there is padding"
            )

    @property
    def steps(self) -> Steps:
        return Steps(self.context + self.stride - self.padding, self.stride)

    def reach(self, first: int, last: int) -> Span:
        start, stop = super().reach(first, last)
        return max(0, (start or 0) - self.padding), stop - self.padding

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], len(self.weight), 0), None
        ends = (self.padding if state is None else 0, self.padding if end else 0)
        return super().step(F.pad(x, ends) if any(ends) else x, state, end=end)


class CentredConvTranspose1d(CausalConvTranspose1d):
    """torch.nn.ConvTranspose1d with its `padding` and `output_padding`: the ends of what N inputs
    spread out over are cut off, by `padding` before, and by that less `output_padding` behind.

    N inputs give (N - 1) * stride + kernel - 2 * padding + output_padding outputs. Where that is no
    multiple of the stride, the stream ends with some more or fewer.

    State: what the last inputs add to the next outputs, (batch, out_channels, kernel - stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        padding: int = 0,
        output_padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        self.padding, self.output_padding = padding, output_padding
        overlap = kernel_size - stride
        if overlap < 0 or not 0 <= padding or padding and not overlap:
            raise ValueError(
                f"padding of {padding} in a transposed kernel of {kernel_size}, {stride} from one "
                "to the next; wanted kernels that touch, and overlap where there is padding"
            )
        if overlap - padding + output_padding < 0 or not 0 <= output_padding < max(stride, 2):
            raise ValueError(
                f"padding of {padding} and output padding of {output_padding} in a transposed "
                f"kernel of {kernel_size}, {stride} from one to the next: more is cut off its end "
                "than overlaps"
            )

    @property
    def steps(self) -> Steps:
        lead = self.padding // self.stride + 1
        return Steps(lead, 1, lead * self.stride - self.padding, self.stride)

    def reach(self, first: int, last: int) -> Span:
        return super().reach(first + self.padding, last + self.padding)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if x.shape[-1]:
            y, overlap = super().step(x, state)
        else:
            y, overlap = x.new_zeros(x.shape[0], self.weight.shape[1] * self.groups, 0), state
        if end and isinstance(overlap, Tensor):
            tail = self.weight.shape[2] - self.stride - self.padding + self.output_padding
            rest = F.pad(overlap, (0, self.output_padding))[..., :tail]
            y = torch.cat((y, rest if self.bias is None else rest + self.bias[:, None]), dim=-1)
        return y[..., self.padding if state is None else 0 :], overlap
