"""ConvNeXt: a causal block that mixes along time and across channels one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Exportable, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State
from streamenc_kernels import depthwise_norm, fuses_depthwise

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue


class ConvNeXt(Streamed, Exportable):
    """A residual block of a depthwise causal convolution and a feed-forward at each position.

    (batch, width, time) -> the same shape. After Liu et al., arXiv 2201.03545, with time instead of
    the image.

    quick   GELU in the form with tanh.
    bias    Of the feed-forward.
    scaled  A learnt scale per channel on the block, before the input is added.

    State: that of the convolution, (batch, width, kernel - 1).
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        kernel_size: int = 7,
        *,
        norm_eps: float = 1e-5,
        quick: bool = True,
        bias: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.quick = quick
        self.depthwise = CausalConv1d(width, width, kernel_size, groups=width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)
        self.scale = nn.Parameter(torch.empty(width)) if scaled else None

    @property
    def steps(self) -> Steps:
        return self.depthwise.steps

    def reach(self, first: int, last: int) -> Span:
        return self.depthwise.reach(first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        y, following = self._normed(x, state, end)
        y = self.up(y)
        y = self.down(F.gelu(y, approximate="tanh" if self.quick else "none"))
        if self.scale is not None:
            y = self.scale * y
        return x + y.transpose(1, 2), following

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        before = state if isinstance(state, Tensor) else None
        conv = self.depthwise
        y = plan.depthwise(x, conv.weight, conv.bias, before, norm=self.norm)
        y = plan.linear(y, self.up, activation="gelu_tanh" if self.quick else "gelu")
        return plan.linear(y, self.down, scale=self.scale, residual=x)

    def _normed(self, x: Tensor, state: State, end: bool) -> tuple[Tensor, State]:
        """The convolution behind its norm, (batch, time, width)."""
        weight, bias = self.depthwise.weight[:, 0], self.depthwise.bias
        plain = self._exported or not self.depthwise.context or not x.shape[2]
        if plain or not fuses_depthwise(x, weight):
            y, following = self.depthwise.step(x, state, end=end)
            return self.norm(y.transpose(1, 2)), following
        assert bias is not None
        if not isinstance(state, Tensor):
            state = x.new_zeros(*x.shape[:2], self.depthwise.context)
        norm = self.norm
        return depthwise_norm(x, state, weight, bias, norm.weight, norm.bias, norm.eps)


class SplitConvNeXt(Streamed):
    """The convolution and the feed-forward as two residual branches, each behind a norm of its own.

    (batch, width, time) -> the same shape: RMS norms, the exact GELU, and a learnt scale per
    channel on each branch.

    State: that of the convolution, (batch, width, kernel - 1).
    """

    def __init__(
        self, width: int, hidden: int, kernel_size: int = 7, *, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=norm_eps)
        self.depthwise = CausalConv1d(width, width, kernel_size, groups=width)
        self.scale1 = nn.Parameter(torch.empty(width))
        self.norm2 = nn.RMSNorm(width, eps=norm_eps)
        self.up = Linear(width, hidden, bias=True)
        self.down = Linear(hidden, width, bias=True)
        self.scale2 = nn.Parameter(torch.empty(width))

    @property
    def steps(self) -> Steps:
        return self.depthwise.steps

    def reach(self, first: int, last: int) -> Span:
        return self.depthwise.reach(first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        normal = self.norm1(x.transpose(1, 2)).transpose(1, 2)
        y, following = self.depthwise.step(normal, state, end=end)
        x = x.transpose(1, 2) + self.scale1 * y.transpose(1, 2)
        x = x + self.scale2 * self.down(F.gelu(self.up(self.norm2(x))))
        return x.transpose(1, 2), following

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        before = state if isinstance(state, Tensor) else None
        conv, normal = self.depthwise, plan.norm(x, self.norm1)
        x = plan.depthwise(normal, conv.weight, conv.bias, before, scale=self.scale1, residual=x)
        y = plan.linear(plan.norm(x, self.norm2), self.up, activation="gelu")
        return plan.linear(y, self.down, scale=self.scale2, residual=x)
