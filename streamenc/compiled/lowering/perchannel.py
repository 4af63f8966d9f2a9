"""What looks at rows or channels alone: norms, and convolutions of each channel."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from streamenc.compiled.lowering.sheet import Sheet, lane_bytes, rows_of
from streamenc.compiled.values import AnyValue, LaneStride, Operand, Outside, Row, Value
from streamenc.errors import CannotLower
from streamenc_kernels.compiled.instruction import Activation, Field, Kind


class PerChannel(Sheet):
    """What of a step needs no product."""

    def spread(
        self,
        x: AnyValue,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        stride: int,
    ) -> Value:
        """`transposed` of each channel alone; weight (channels, 1, 2 * stride)."""
        if weight.shape[1:] != (1, 2 * stride):
            raise CannotLower(f"a transposed convolution of {weight.shape[1:]} by {stride}")
        buffer = x.place()
        taps = self.constant(weight.detach().numpy()[:, 0].T)
        index = self.leaf(state)
        self.replaced.add(index)
        made = self.add(
            Kind.SPREAD,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                **rows_of(buffer),
                Field.PANELS: taps.ctypes.data,
                Field.BIAS: 0 if bias is None else self.constant(bias.detach().numpy()).ctypes.data,
                Field.A: stride,
                Field.B: Outside("before", index),
                Field.C: Outside("after", index),
                Field.D: lane_bytes(state),
            },
        )
        # Its Y_ROW is that of single rows, as it goes through them itself.
        return Value(self, x.rows * stride, x.channels, made, slots=False)

    def depthwise(
        self,
        x: AnyValue,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        elu: bool = False,
        norm: nn.LayerNorm | None = None,
        scale: Tensor | None = None,
        residual: AnyValue | None = None,
    ) -> Value:
        """norm(conv(x)) or conv(x) * scale + residual, of `convolution` of each channel alone.

        weight  (channels, 1, kernel).
        """
        kernel = weight.shape[2]
        context = (kernel - 1) * dilation + 1 - stride
        if x.rows % stride or context < 0 or (context > 0) != (state is not None):
            raise CannotLower(f"{x.rows} positions of a convolution of {kernel} by {stride}")
        assert norm is None or (scale is None and residual is None)
        buffer = x.place(Activation.ELU if elu else Activation.NONE, before=context)
        if state is not None:
            self.read_leaf(state, buffer, -context)
        factor = 1 if scale is None else scale.detach().numpy()
        taps = weight.detach().numpy()[:, 0].T * factor
        added = None if bias is None else bias.detach().numpy() * factor
        fields: dict[Field, Operand] = {
            Field.ROWS: x.rows // stride,
            Field.OUT: x.channels,
            Field.X: Row(buffer, -context),
            Field.X_ROW: stride * buffer.row_bytes,
            Field.X_LANE: LaneStride(buffer),
            Field.PANELS: self.constant(taps).ctypes.data,
            Field.A: kernel,
            Field.B: dilation,
            Field.D: stride,
            Field.E: 0 if added is None else self.constant(added).ctypes.data,
        }
        if norm is not None:
            fields |= self._norm_fields(norm)
            fields[Field.C] = self.constant(np.array([norm.eps], np.float32)).ctypes.data
        if residual is not None:
            fields |= self.residual_fields(residual)
        y = Value(self, x.rows // stride, x.channels, self.add(Kind.DEPTHWISE, fields), slots=False)
        if state is not None:
            self.write_leaf(state, buffer, x.rows - context)
        return y

    def norm(self, x: AnyValue, layer: nn.Module) -> Value:
        """LayerNorm or RMSNorm over the channels."""
        if not isinstance(layer, nn.LayerNorm | nn.RMSNorm) or layer.weight is None:
            raise CannotLower(f"a {type(layer).__name__} has no instructions")
        assert layer.eps is not None
        buffer = x.place()
        made = self.add(
            Kind.NORM,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                **rows_of(buffer),
                **self._norm_fields(layer),
                Field.A: int(isinstance(layer, nn.RMSNorm)),
                Field.B: self.constant(np.array([layer.eps], np.float32)).ctypes.data,
            },
        )
        return Value(self, x.rows, x.channels, made, slots=False)

    def running_norm(
        self,
        x: AnyValue,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        state: tuple[Tensor, Tensor, Tensor] | None,
        frozen: tuple[Tensor, Tensor] | None,
        *,
        block: int,
        memory: int | None,
    ) -> Value:
        """(x - mean) / sqrt(variance + eps) * weight + bias of each channel, over time.

        state   Positions so far, mean and variance, which each block of so many positions moves.
        frozen  Mean and variance that stay, where there is no state.
        """
        if x.rows % block:
            raise CannotLower(f"{x.rows} positions are no whole number of blocks of {block}")
        fields: dict[Field, Operand] = {
            Field.ROWS: x.rows,
            Field.OUT: x.channels,
            Field.INSIDE: memory or 0,
            Field.G: block,
            Field.PANELS: self.constant(np.array([eps], np.float32)).ctypes.data,
            **rows_of(x.place()),
        }
        if state is not None:
            indices = [self.leaf(leaf) for leaf in state]
            self.replaced |= set(indices)
            places = ((Field.A, Field.B), (Field.C, Field.D), (Field.E, Field.F))
            for index, (came, goes) in zip(indices, places, strict=True):
                fields |= {came: Outside("before", index), goes: Outside("after", index)}
        elif frozen is not None:
            for part, field in zip(frozen, (Field.C, Field.E), strict=True):
                fields[field] = self.constant(part.detach().numpy()).ctypes.data
        if weight is not None and bias is not None:
            fields[Field.SCALE] = self.constant(weight.detach().numpy()).ctypes.data
            fields[Field.BIAS] = self.constant(bias.detach().numpy()).ctypes.data
        return Value(self, x.rows, x.channels, self.add(Kind.RUNNING, fields))

    def _norm_fields(self, layer: nn.LayerNorm | nn.RMSNorm) -> dict[Field, Operand]:
        bias = layer.bias if isinstance(layer, nn.LayerNorm) else None
        return {
            Field.SCALE: self.constant(layer.weight.detach().numpy()).ctypes.data,
            Field.BIAS: 0 if bias is None else self.constant(bias.detach().numpy()).ctypes.data,
        }

    def gated(self, x: AnyValue) -> Value:
        """silu(gate) * up, where the channels are those of `gate` and then those of `up`."""
        fields: dict[Field, Operand] = {Field.ROWS: x.rows, Field.OUT: x.channels // 2}
        made = self.add(Kind.GATE, fields | rows_of(x.place()))
        return Value(self, x.rows, x.channels // 2, made, slots=False)

    def sum(self, x: AnyValue, other: AnyValue) -> Value:
        """x + other, of the same shape."""
        buffer = other.place()
        made = self.add(
            Kind.ADD,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                **rows_of(x.place()),
                Field.RESIDUAL: Row(buffer),
                Field.RESIDUAL_ROW: buffer.row_bytes,
                Field.RESIDUAL_LANE: LaneStride(buffer),
            },
        )
        return Value(self, x.rows, x.channels, made)
