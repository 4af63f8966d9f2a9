"""Causal convolutions with carried state: the SEANet family's Conv1d and ConvTranspose1d."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import CannotLower
from streamenc.layers.streamed import Exportable, Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State
from streamenc_kernels import (
    adds_fused,
    causal_conv,
    fuses_conv,
    overlap_add,
    pack_linear,
    packed_linear,
)

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

PadMode = Literal["constant", "replicate", "reflect"]

# Up to so many outputs at once, over all lanes, a convolution is computed as a product with its
# weight. There the weight's size decides. On a CPU torch's own kernels read it slowly. On a GPU
# cuDNN's float32 kernels pad the outputs to a tile of 32 or more and go through a window's inputs
# one after the other, on a few processors; cuBLAS shares them out. Beyond, torch's own win.
PRODUCT_OUTPUTS = {"cpu": 64, "cuda": 128}


class CausalConv1d(Streamed, Prepared, Exportable):
    """A causal convolution: output t sees inputs up to (t + 1) * stride - 1.

    The stream's start is padded on the left by kernel - stride positions, in `pad_mode`; a tail
    that is no multiple of the stride is padded on the right in the same mode. Reflection at the
    start needs `context + 1` inputs in the first step, replication one.

    elu  It sees ELU of its input instead, as in the SEANet family: on a GPU within one kernel.

    State: the last `context` inputs, (batch, in_channels, context), behind the ELU where it has
    one; None where that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        pad_mode: PadMode = "constant",
        elu: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.stride, self.dilation, self.groups, self.elu = stride, dilation, groups, elu
        self.pad_mode: PadMode = pad_mode
        self.context = (kernel_size - 1) * dilation + 1 - stride
        self._product = groups == 1 and self.weight[0].numel() >= 64
        self._by_kernel = groups == 1 or groups == in_channels == out_channels
        self._packed: Tensor | None = None

    @property
    def steps(self) -> Steps:
        needed = self.context + 1 if self.pad_mode == "reflect" else 1
        outputs = -(-needed // self.stride)
        return Steps(outputs * self.stride, self.stride, outputs, 1)

    def reach(self, first: int, last: int) -> Span:
        start, stop = first * self.stride - self.context, (last + 1) * self.stride - 1
        if self.pad_mode == "reflect":
            stop = max(stop, -start)
        return max(0, start), stop

    def prepare(self) -> None:
        self._packed = pack_linear(self.weight.flatten(1)) if self._product else None

    def for_export(self) -> None:
        super().for_export()
        self._packed = None

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.step_onto(x, state, None, end=end)

    def step_onto(
        self, x: Tensor, state: State, residual: Tensor | None, *, end: bool = False
    ) -> tuple[Tensor, State]:
        """A step whose outputs are added to `residual`, (batch, out_channels, outputs)."""
        ragged = -x.shape[-1] % self.stride
        assert end or not ragged, f"{x.shape[-1]} inputs in mid-stream; stride is {self.stride}"
        fused = self._by_kernel and not self._exported and fuses_conv(x, self.weight)
        if fused and not ragged and (isinstance(state, Tensor) or not self.context):
            before = state if isinstance(state, Tensor) else None
            return self._fused(x, before, residual, elu=self.elu)
        if self.elu:
            x = F.elu(x)
        padded = self._padded(x, state, ragged)
        if fused:  # where a stream starts or ends
            before = padded[..., : self.context] if self.context else None
            return self._fused(padded[..., self.context :], before, residual, elu=False)
        y = self._convolve(padded)
        if residual is not None:
            y = residual + y
        if not self.context:
            return y, None
        return y, _tail(padded, self.context)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.lower_onto(plan, x, state, None)

    def lower_onto(
        self, plan: Plan, x: AnyValue, state: State, residual: AnyValue | None
    ) -> AnyValue:
        """The instructions of `step_onto`."""
        if self.groups == self.weight.shape[0] and self.weight.shape[1] == 1:
            return plan.depthwise(
                x,
                self.weight,
                self.bias,
                state if isinstance(state, Tensor) else None,
                stride=self.stride,
                dilation=self.dilation,
                elu=self.elu,
                residual=residual,
            )
        if self.groups != 1 or self.dilation != 1:
            raise CannotLower("a convolution in groups or with gaps has no instructions yet")
        return plan.convolution(
            x,
            self.weight,
            self.bias,
            state if isinstance(state, Tensor) else None,
            stride=self.stride,
            elu=self.elu,
            residual=residual,
        )

    def _padded(self, x: Tensor, state: State, ragged: int) -> Tensor:
        """The inputs behind the state, or behind the padding of a stream's start."""
        if not isinstance(state, Tensor):
            return pad(x, self.context, ragged, self.pad_mode)
        padded = torch.cat((state, x), dim=-1) if self.context else x
        return pad(padded, 0, ragged, self.pad_mode) if ragged else padded

    def _fused(
        self, x: Tensor, state: Tensor | None, residual: Tensor | None, *, elu: bool
    ) -> tuple[Tensor, State]:
        return causal_conv(
            x,
            state,
            self.weight,
            self.bias,
            stride=self.stride,
            dilation=self.dilation,
            elu=elu,
            residual=residual,
        )

    def _convolve(self, x: Tensor) -> Tensor:
        batch, channels, length = x.shape
        span = (self.weight.shape[2] - 1) * self.dilation + 1
        outputs = (length - span) // self.stride + 1
        few = _few(x, outputs, any_lanes=self._exported)
        depthwise = self.groups == channels == len(self.weight) and (
            self._exported or x.device.type == "cpu"
        )
        if span == self.stride == self.groups == 1 and not few and self._is_turned(x):
            # torch's own would turn the whole input around first, which takes as long again.
            return F.linear(x.transpose(1, 2), self.weight[..., 0], self.bias).transpose(1, 2)
        if not few or not (depthwise or self._product):
            return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        windows = self._windows(x, span, outputs)
        if depthwise:
            # oneDNN takes several times as long to set up a depthwise convolution.
            y = (windows * self.weight).sum(dim=-1)
            return y if self.bias is None else y + self.bias[:, None]
        rows = windows.transpose(1, 2).reshape(batch, outputs, -1)
        if x.is_cuda:  # the product adds the bias as well
            return F.linear(rows, self.weight.flatten(1), self.bias).transpose(1, 2)
        y = packed_linear(rows, self.weight.flatten(1), self._packed)
        return (y if self.bias is None else y + self.bias).transpose(1, 2)

    def _is_turned(self, x: Tensor) -> bool:
        """Whether the channels of each position stand side by side in memory, on a CPU."""
        if self._exported or x.device.type != "cpu":  # a graph must not ask for the sizes of x
            return False
        return not x.is_contiguous() and x.transpose(1, 2).is_contiguous()

    def _windows(self, x: Tensor, span: int, outputs: int) -> Tensor:
        """What each output sees, (batch, channels, outputs, kernel)."""
        if not self._exported:
            return x.unfold(-1, span, self.stride)[..., :: self.dilation]
        # ONNX has no views: slices instead of a gather of each number.
        if span == 2 * self.stride:
            blocks = x.reshape(*x.shape[:2], outputs + 1, self.stride)
            return torch.cat((blocks[:, :, :-1], blocks[:, :, 1:]), dim=-1)
        reach = (outputs - 1) * self.stride + 1
        starts = range(0, span, self.dilation)
        return torch.stack([x[..., i : i + reach : self.stride] for i in starts], dim=-1)


class ValidConv1d(CausalConv1d):
    """The convolution without padding at the end: a tail that fills no kernel is dropped.

    Output t sees inputs t * stride - before to t * stride - before + kernel - 1. The first step
    takes kernel - stride - before inputs more than a multiple of the stride. kernel >= stride.

    before  So many zeros, fewer than the kernel has, stand before the stream.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        before: int = 0,
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
        self.before = before

    @property
    def steps(self) -> Steps:
        return Steps(self.context + self.stride - self.before, self.stride)

    def reach(self, first: int, last: int) -> Span:
        stop = (last + 1) * self.stride + self.context - 1 - self.before
        return max(0, first * self.stride - self.before), stop

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, Tensor):
            x = torch.cat((state, x), dim=-1)
        elif self.before and state is None:
            x = F.pad(x, (self.before, 0))
        outputs = max(0, (x.shape[-1] - self.context) // self.stride)
        rest = x[..., outputs * self.stride :]
        assert end or (outputs and rest.shape[-1] == self.context)
        if not outputs:
            return x.new_zeros(x.shape[0], len(self.weight), 0), None
        return self._convolve(x), rest.contiguous() if self.context else None


class CausalConvTranspose1d(Streamed, Prepared, Exportable):
    """The causal counterpart that raises the rate: `stride` outputs for each input.

    What a full transposed convolution would add to later outputs is carried, without the bias; at
    the end of the stream it is trimmed.

    State: that overlap, (batch, out_channels, kernel - stride); None where that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.stride, self.groups = stride, groups
        self._overlaps = kernel_size in (stride, 2 * stride)
        self._product = groups == 1 and self._overlaps
        self._depthwise = groups == in_channels == out_channels
        self._packed: Tensor | None = None

    @property
    def steps(self) -> Steps:
        return Steps(hop_out=self.stride, lead_out=self.stride)

    def reach(self, first: int, last: int) -> Span:
        start = (first + self.stride - self.weight.shape[2]) // self.stride
        return max(0, start), last // self.stride

    def prepare(self) -> None:
        self._packed = pack_linear(self.weight.flatten(1).t()) if self._product else None

    def for_export(self) -> None:
        super().for_export()
        self._packed = None

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if self._fused(x):
            before = state if isinstance(state, Tensor) else None
            return overlap_add(self._pieces(x), before, self.bias, self.stride)
        y = self._convolve(x)
        if isinstance(state, Tensor):
            y = y + pad(state, 0, y.shape[-1] - state.shape[-1], "constant")
        length = x.shape[-1] * self.stride
        overlap = y[..., length:].contiguous() if y.shape[-1] > length else None
        y = y[..., :length]
        return y if self.bias is None else y + self.bias[:, None], overlap

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        overlap = state if isinstance(state, Tensor) else None
        if self.groups == 1:
            return plan.transposed(x, self.weight, self.bias, overlap, self.stride)
        if not self._depthwise or overlap is None:
            raise CannotLower("a transposed convolution in groups has no instructions yet")
        return plan.spread(x, self.weight, self.bias, overlap, self.stride)

    def _fused(self, x: Tensor) -> bool:
        """Whether it is computed as what each input gives, and one kernel that adds that up."""
        if self._exported or not (self._overlaps and (self._product or self._depthwise)):
            return False
        given = self.weight.shape[1] * self.groups * self.weight.shape[2]
        return adds_fused(x, x.shape[0] * x.shape[2] * given)

    def _pieces(self, x: Tensor) -> Tensor:
        """What each input gives, (batch, time, out_channels, kernel)."""
        batch, channels, length = x.shape
        if self._depthwise:
            return x.transpose(1, 2)[..., None] * self.weight[:, 0]
        rows = x.transpose(1, 2).reshape(batch * length, channels)
        return (rows @ self.weight.flatten(1)).view(batch, length, *self.weight.shape[1:])

    def _convolve(self, x: Tensor) -> Tensor:
        batch, channels, length = x.shape
        if not _few(x, length, any_lanes=self._exported) or not self._product:
            return F.conv_transpose1d(x, self.weight, None, self.stride, 0, 0, self.groups)
        spread = packed_linear(x.transpose(1, 2), self.weight.flatten(1).t(), self._packed)
        spread = spread.view(batch, length, self.weight.shape[1], -1, self.stride).transpose(1, 2)
        if spread.shape[3] == 1:
            return spread.reshape(batch, self.weight.shape[1], length * self.stride)
        # With a kernel of two strides each input reaches over its own outputs and the next ones'.
        own, following = spread[..., 0, :], spread[..., 1, :]
        return (F.pad(own, (0, 0, 0, 1)) + F.pad(following, (0, 0, 1, 0))).flatten(2)


def _few(x: Tensor, outputs: int, *, any_lanes: bool) -> bool:
    """Whether a product with the weight is the faster way to so many outputs of each lane.

    any_lanes  Decides for any number of lanes, and any runtime.
    """
    if any_lanes:
        return outputs <= PRODUCT_OUTPUTS["cpu"]
    return x.shape[0] * outputs <= PRODUCT_OUTPUTS.get(x.device.type, 0)


def _tail(x: Tensor, context: int) -> Tensor:
    """The last inputs, for the state. On a GPU a view: what commits it takes it as it lies."""
    tail = x[..., x.shape[-1] - context :]
    return tail if x.is_cuda else tail.contiguous()


def pad(x: Tensor, left: int, right: int, mode: PadMode) -> Tensor:
    """Pads the last axis; where nothing is missing, this is `x` itself, not a copy.

    Reflection of an input that is too short first extends it by zeros on the right, which are cut
    off again, as the SEANet codecs do.
    """
    if not left and not right:
        return x
    if mode == "constant":
        return F.pad(x, (left, right))
    if mode == "replicate":
        return F.pad(x, (left, right), mode="replicate")
    missing = max(0, max(left, right) + 1 - x.shape[-1])
    y = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
    return y[..., : y.shape[-1] - missing]
