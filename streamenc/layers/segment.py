"""Convolutions over whole segments, padded on both sides, each with a normalisation after it.

They see the future, so a segment is a stream of one piece: its first step is its last. Each output
depends on the whole segment, so who cuts the segments says how far that reaches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.conv.causal import PadMode, pad
from streamenc.layers.streamed import Streamed
from streamenc.spec import Steps
from streamenc.state import State


class SegmentConv1d(Streamed):
    """A centred convolution; where the padding is odd, the left side gets one more. No state."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        pad_mode: PadMode = "reflect",
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.norm = nn.GroupNorm(1, out_channels)
        self.stride, self.dilation = stride, dilation
        self.pad_mode: PadMode = pad_mode
        self.padding = (kernel_size - 1) * dilation + 1 - stride

    @property
    def steps(self) -> Steps:
        return Steps(self.stride, self.stride)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert state is None and end, "a segment comes as one piece"
        right = self.padding // 2
        x = pad(x, self.padding - right, right + -x.shape[-1] % self.stride, self.pad_mode)
        y = F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation)
        return self.norm(y), None


class SegmentConvTranspose1d(Streamed):
    """The counterpart that raises the rate: `stride` outputs for each input. No state."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.norm = nn.GroupNorm(1, out_channels)
        self.stride, self.padding = stride, kernel_size - stride

    @property
    def steps(self) -> Steps:
        return Steps(lead_out=self.stride, hop_out=self.stride)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert state is None and end, "a segment comes as one piece"
        # The normalisation is over what the full convolution gives, before it is trimmed.
        y = self.norm(F.conv_transpose1d(x, self.weight, self.bias, self.stride))
        right = self.padding // 2
        return y[..., self.padding - right : y.shape[-1] - right], None
