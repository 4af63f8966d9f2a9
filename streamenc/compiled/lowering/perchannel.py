"""What looks at rows or channels alone: norms, and convolutions of each channel."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from streamenc.compiled.lowering.sheet import Sheet, lane_bytes, rows_of
from streamenc.compiled.values import AnyValue, LaneStride, Operand, Outside, Row, Value
from streamenc.errors import CannotLower
from streamenc_kernels.compiled.instruction import Field, Kind


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

    def norm(self, x: AnyValue, layer: nn.Module) -> Value:
        """LayerNorm or RMSNorm over the channels."""
        if not isinstance(layer, nn.LayerNorm | nn.RMSNorm) or layer.weight is None:
            raise CannotLower(f"a {type(layer).__name__} has no instructions")
        assert layer.eps is not None
        bias = layer.bias if isinstance(layer, nn.LayerNorm) else None
        buffer = x.place()
        made = self.add(
            Kind.NORM,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                **rows_of(buffer),
                Field.SCALE: self.constant(layer.weight.detach().numpy()).ctypes.data,
                Field.BIAS: 0 if bias is None else self.constant(bias.detach().numpy()).ctypes.data,
                Field.A: int(isinstance(layer, nn.RMSNorm)),
                Field.B: self.constant(np.array([layer.eps], np.float32)).ctypes.data,
            },
        )
        return Value(self, x.rows, x.channels, made, slots=False)

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
