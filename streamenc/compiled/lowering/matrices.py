"""Products: linear layers, convolutions, and convolutions that raise the rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from streamenc.compiled.lowering.sheet import Sheet
from streamenc.compiled.tiledweights import Tiles
from streamenc.compiled.values import FLOAT_BYTES, AnyValue, Buffer, LaneStride, Operand, Row, Value
from streamenc.compiled.weights import Array
from streamenc.errors import CannotLower
from streamenc.layers.linear import Linear
from streamenc_kernels.compiled.instruction import MANY_ROWS, Activation, Field, Kind
from streamenc_kernels.compiled.planes.shapes import row_bytes

# Products with so few outputs are sums one by one.
FEW_OUTPUTS = 4
# Of these few weights reading them is not what a product waits for.
LEAST_SHORT_WEIGHTS = 1 << 10
# Products of fewer rows of a hop wait for their weights alone, and those of less inside or fewer
# outputs are small.
LEAST_TILED_ROWS, LEAST_TILED = 4, 32
ACTIVATIONS = {
    "none": Activation.NONE,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
}


class Products(Sheet):
    """What of a step is a product with weights."""

    def linear(
        self,
        x: AnyValue,
        layer: Linear,
        *,
        scale: Tensor | None = None,
        residual: AnyValue | None = None,
        activation: str = "none",
    ) -> Value:
        """activation((weight @ x + bias) * scale + residual), at each position alone."""
        buffer = x.place()
        return self._product(
            *(x.rows, x.channels, Row(buffer), buffer.row_bytes, LaneStride(buffer)),
            *(layer.weight, same, "rows", layer.bias),
            scale=scale,
            residual=residual,
            behind=ACTIVATIONS[activation],
        )

    def convolution(
        self,
        x: AnyValue,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        *,
        stride: int = 1,
        elu: bool = False,
        residual: AnyValue | None = None,
        activation: str = "none",
    ) -> Value:
        """activation(conv(x) + residual) of a causal convolution along time, or of ELU of x.

        weight  (out, in, kernel).
        state   The kernel - stride positions before x, behind the ELU, (lanes, in, kernel -
                stride); None where there are none.
        """
        channels, kernel = weight.shape[1:]
        context = kernel - stride
        if x.rows % stride or context < 0 or (context > 0) != (state is not None):
            raise CannotLower(f"{x.rows} positions of a convolution of {kernel} by {stride}")
        buffer = x.place(Activation.ELU if elu else Activation.NONE, before=context)
        if state is not None:
            self.read_leaf(state, buffer, -context)
        y = self._product(
            x.rows // stride,
            kernel * channels,
            Row(buffer, -context),
            stride * buffer.row_bytes,
            LaneStride(buffer),
            *(weight, by_tap, "taps", bias),
            residual=residual,
            behind=ACTIVATIONS[activation],
        )
        if state is not None:
            self.write_leaf(state, buffer, x.rows - context)
        return y

    def transposed(
        self,
        x: AnyValue,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        stride: int,
    ) -> Value:
        """A causal transposed convolution, `stride` outputs for each input.

        weight  (in, out, kernel), of a kernel of one stride or two.
        state   What the inputs before add to the next `stride` outputs, (lanes, out, stride).
        """
        inputs, out, kernel = weight.shape
        tiled = None if bias is None else self.constant(np.tile(bias.detach().numpy(), stride))
        if kernel == stride and state is None:
            buffer = x.place()
            return self._product(
                *(x.rows, inputs, Row(buffer), buffer.row_bytes, LaneStride(buffer)),
                *(weight, _own_block, "block", tiled),
                rows_each=stride,
            )
        if kernel != 2 * stride or state is None:
            raise CannotLower(f"a transposed convolution of {kernel} by {stride}")
        # Row t of x[t - 1], x[t] gives block t, with zeros around x: to the first one the overlap
        # is added that came, and the one behind the last is the overlap that goes.
        buffer = x.place(before=1, after=1)
        came, goes = Buffer(stride, out), Buffer(stride, out)
        self.fill(buffer, -1, 1)
        self.fill(buffer, x.rows, 1)
        self.read_leaf(state, came, 0)
        y = self._product(
            *(x.rows + 1, 2 * inputs, Row(buffer, -1), buffer.row_bytes, LaneStride(buffer)),
            *(weight, _two_blocks, "blocks", tiled),
            rows_each=stride,
            main_rows=x.rows,
        )
        assert y.maker is not None
        y.maker.fields |= {
            Field.RESIDUAL: Row(came),
            Field.RESIDUAL_ROW: came.lane_bytes,
            Field.RESIDUAL_LANE: LaneStride(came),
            Field.RESIDUAL_ROWS: 1,
            Field.TAIL: Row(goes),
            Field.TAIL_LANE: LaneStride(goes),
        }
        self.write_leaf(state, goes, 0)
        return y

    def _product(
        self,
        rows: int,
        inside: int,
        x: Operand,
        x_row: int,
        x_lane: Operand,
        weight: Tensor,
        arrange: Callable[[Tensor], Tensor],
        way: str,
        bias: Tensor | Array | None,
        *,
        scale: Tensor | None = None,
        residual: AnyValue | None = None,
        behind: Activation = Activation.NONE,
        rows_each: int = 1,
        main_rows: int | None = None,
        outputs: int | None = None,
    ) -> Value:
        outputs = weight.numel() // inside if outputs is None else outputs
        main_rows = rows if main_rows is None else main_rows
        fields: dict[Field, Operand] = {
            Field.ROWS: rows,
            Field.MAIN_ROWS: main_rows,
            Field.OUT: outputs,
            Field.INSIDE: inside,
            Field.X: x,
            Field.X_ROW: x_row,
            Field.X_LANE: x_lane,
        }
        if outputs <= FEW_OUTPUTS:
            kind = Kind.DOT
            plain = self.constant(arrange(weight.detach()).contiguous().numpy())
            fields[Field.PANELS] = plain.ctypes.data
            factor = None
        elif tiles := self._tiles(rows, inside, outputs, weight, arrange, way):
            kind = Kind.TILED
            split = Buffer(rows, row_bytes(inside) // FLOAT_BYTES)
            target: dict[Field, Operand] = {
                Field.Y: Row(split),
                Field.Y_ROW: split.row_bytes,
                Field.Y_LANE: LaneStride(split),
            }
            self.add(Kind.SPLIT, {**fields, **target})
            fields |= {Field.X: Row(split), Field.X_ROW: split.row_bytes}
            fields |= {Field.PANELS: tiles.numbers.ctypes.data, Field.A: tiles.steps}
            factor = tiles.scale
        else:
            kind = Kind.PRODUCT
            short = rows < MANY_ROWS * self.hops and weight.numel() >= LEAST_SHORT_WEIGHTS
            panels = self.weights.panels(weight, arrange, way, short=short)
            fields[Field.PANELS] = panels.table.ctypes.data
            factor = panels.scale
        if scale is not None:
            scaled = scale.detach().numpy()
            factor = self.constant(scaled if factor is None else scaled * factor)
        if factor is not None:
            fields[Field.SCALE] = factor.ctypes.data
        if bias is not None:
            added = bias.detach().numpy() if isinstance(bias, Tensor) else bias
            if scale is not None:
                added = added * scale.detach().numpy()
            fields[Field.BIAS] = self.constant(added).ctypes.data
        if residual is not None:
            fields |= self.residual_fields(residual)
        made = self.add(kind, fields)
        return Value(
            *(self, main_rows * rows_each, outputs // rows_each, made, behind),
            rows_each=rows_each,
        )

    def _tiles(
        self,
        rows: int,
        inside: int,
        outputs: int,
        weight: Tensor,
        arrange: Callable[[Tensor], Tensor],
        way: str,
    ) -> Tiles | None:
        """The weights of a product for matrix units, where there are some that it is worth.

        Not of many rows: these have their weights in float32, which two digits do not hold, and
        what is rounded must not depend on the processor.
        """
        fits = LEAST_TILED_ROWS * self.hops <= rows < MANY_ROWS * self.hops
        large = min(inside, outputs) >= LEAST_TILED and weight.numel() >= LEAST_SHORT_WEIGHTS
        return self.weights.tiles(weight, arrange, way) if fits and large else None


def same(weight: Tensor) -> Tensor:
    return weight


def by_tap(weight: Tensor) -> Tensor:
    """(out, in, kernel) -> (out, kernel * in)."""
    return weight.transpose(1, 2).flatten(1)


def _own_block(weight: Tensor) -> Tensor:
    """(in, out, stride) -> (stride * out, in)."""
    return weight.permute(2, 1, 0).flatten(0, 1)


def _two_blocks(weight: Tensor) -> Tensor:
    """(in, out, 2 * stride) -> (stride * out, 2 * in): what the input before gives, and its own."""
    taps = weight.permute(2, 1, 0)
    stride = taps.shape[0] // 2
    return torch.cat((taps[stride:].flatten(0, 1), taps[:stride].flatten(0, 1)), dim=1)
