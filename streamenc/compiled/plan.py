"""Plan: the instructions of a step, as the layers of a model ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamenc.compiled.values import (
    FLOAT_BYTES,
    Activated,
    AnyValue,
    Buffer,
    Instruction,
    LaneStride,
    Operand,
    Outside,
    Row,
    Value,
)
from streamenc.compiled.weights import Array, Weights, aligned
from streamenc.errors import CannotLower
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Streamed
from streamenc.state import State, leaves
from streamenc_kernels.compiled.instruction import MANY_ROWS, Activation, Field, Kind

# Products with so few outputs are sums one by one.
FEW_OUTPUTS = 4
# Of these few weights reading them is not what a product waits for.
LEAST_SHORT_WEIGHTS = 1 << 12
ACTIVATIONS = {
    "none": Activation.NONE,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
}


class Plan:
    """What layers lower themselves into.

    A layer's `lower(plan, x, state)` calls the methods below with its weights, the value that it
    gets, and its part of a state in mid-stream; it gives its output.

    Attributes:
        hops: Of the step.
        leaves: The tensors of the state.
        instructions: So far.
        constants: What has to stay alive beside the weights.
        replaced: Indices of the leaves that a step gives new ones for; the others stay, written in
            place.
    """

    def __init__(self, weights: Weights, state: State, hops: int) -> None:
        self.weights, self.hops = weights, hops
        self.leaves = list(leaves(state))
        self.instructions: list[Instruction] = []
        self.constants: list[Array] = []
        self.replaced: set[int] = set()
        self._rotations: dict[tuple[int, int, float], Buffer] = {}
        self.output: Value | None = None

    def input(self, rows: int, channels: int) -> Value:
        """What goes into the step, (lanes, channels, rows)."""
        return Value(self, rows, channels, None)

    def finish(self, y: AnyValue) -> None:
        """Makes a value what comes out: (lanes, rows, channels)."""
        if isinstance(y, Activated) or y.maker is None or Field.Y in y.maker.fields:
            y = self.copied(y)
        assert y.maker is not None
        size = y.channels * FLOAT_BYTES
        place = Field.Z if y.behind is not Activation.NONE else Field.Y
        if place is Field.Z:
            y.maker.fields[Field.ACTIVATION] = int(y.behind)
        y.maker.fields |= {
            place: Outside("y"),
            Field(place + 1): y.rows_each * size,
            Field(place + 2): y.rows * size,
        }
        self.output = y

    # Layers.

    def through(self, layer: nn.Module, x: AnyValue, state: State) -> AnyValue:
        """A layer's output. Raises CannotLower."""
        if isinstance(layer, Streamed):
            y: AnyValue = layer.lower(self, x, state)
            return y
        if isinstance(layer, nn.Identity):
            return x
        if isinstance(layer, nn.ELU) and layer.alpha == 1 and isinstance(x, Value):
            return x.activated(Activation.ELU)
        if isinstance(layer, Linear):
            return self.linear(x, layer)
        raise CannotLower(f"{type(layer).__name__} has no instructions")

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
            *(layer.weight, _same, "rows", layer.bias),
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
        state   The kernel - stride positions before x, (lanes, in, kernel - stride), behind the ELU;
                None where there are none.
        """
        channels, kernel = weight.shape[1:]
        context = kernel - stride
        if x.rows % stride or context < 0 or (context > 0) != (state is not None):
            raise CannotLower(f"{x.rows} positions of a convolution of {kernel} by {stride}")
        buffer = x.place(Activation.ELU if elu else Activation.NONE, before=context)
        if state is not None:
            self._read(state, buffer, -context)
        y = self._product(
            *(x.rows // stride, kernel * channels, Row(buffer, -context)),
            *(stride * buffer.row_bytes, LaneStride(buffer)),
            *(weight, _by_tap, "taps", bias),
            residual=residual,
            behind=ACTIVATIONS[activation],
        )
        if state is not None:
            self._write(state, buffer, x.rows - context)
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
        self._fill(buffer, -1, 1)
        self._fill(buffer, x.rows, 1)
        self._read(state, came, 0)
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
        self._write(state, goes, 0)
        return y

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
        index = self._leaf(state)
        self.replaced.add(index)
        made = self.add(
            Kind.SPREAD,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                Field.X: Row(buffer),
                Field.X_ROW: buffer.row_bytes,
                Field.X_LANE: LaneStride(buffer),
                Field.PANELS: taps.ctypes.data,
                Field.BIAS: 0 if bias is None else self.constant(bias.detach().numpy()).ctypes.data,
                Field.A: stride,
                Field.B: Outside("before", index),
                Field.C: Outside("after", index),
                Field.D: _lane_bytes(state),
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
                Field.X: Row(buffer),
                Field.X_ROW: buffer.row_bytes,
                Field.X_LANE: LaneStride(buffer),
                Field.SCALE: self.constant(layer.weight.detach().numpy()).ctypes.data,
                Field.BIAS: 0 if bias is None else self.constant(bias.detach().numpy()).ctypes.data,
                Field.A: int(isinstance(layer, nn.RMSNorm)),
                Field.B: self.constant(np.array([layer.eps], np.float32)).ctypes.data,
            },
        )
        return Value(self, x.rows, x.channels, made, slots=False)

    def ring_attention(
        self,
        qkv: Value,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        window: int,
        theta: float,
    ) -> Value:
        """What the heads attend to; see `attend`. keys and values (lanes, heads, slots, dim) are
        written in place."""
        heads, slots, dim = keys.shape[1:]
        at = self._leaf(position)
        angles = self._angles(at, qkv.rows, dim, theta)
        buffer = qkv.place()
        made = self.add(
            Kind.ATTEND,
            {
                Field.ROWS: qkv.rows,
                Field.OUT: heads,
                Field.INSIDE: dim,
                Field.X: Row(buffer),
                Field.X_ROW: buffer.row_bytes,
                Field.X_LANE: LaneStride(buffer),
                Field.A: Outside("before", at),
                Field.B: Outside("before", self._leaf(keys)),
                Field.C: slots,
                Field.D: window,
                Field.E: Outside("before", self._leaf(values)),
                Field.F: Row(angles),
            },
        )
        return Value(self, qkv.rows, heads * dim, made, slots=False)

    def advance(self, position: Tensor, rows: int) -> None:
        """Positions (lanes,) that go on by `rows`."""
        index = self._leaf(position)
        self.replaced.add(index)
        self.add(
            Kind.ADVANCE,
            {
                Field.ROWS: rows,
                Field.A: Outside("before", index),
                Field.B: Outside("after", index),
            },
        )

    # What the methods above are made of.

    def add(self, kind: Kind, fields: dict[Field, Operand]) -> Instruction:
        made = Instruction(kind, fields)
        self.instructions.append(made)
        return made

    def constant(self, values: Array) -> Array:
        """Numbers that instructions refer to, in memory that stays."""
        kept = aligned(values.shape, values.dtype)
        kept[...] = values
        self.constants.append(kept)
        return kept

    def bring_in(self, x: Value, buffer: Buffer) -> None:
        """The step's input, (lanes, channels, rows), as rows."""
        size = x.rows * FLOAT_BYTES
        self._turn(
            Outside("x"), x.channels, x.rows, size, x.channels * size, buffer, Row(buffer)
        )

    def activation_of(self, x: Buffer, activation: Activation, y: Buffer) -> None:
        self.add(
            Kind.ACTIVATE if activation is not Activation.NONE else Kind.COPY,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                Field.X: Row(x),
                Field.X_ROW: x.row_bytes,
                Field.X_LANE: LaneStride(x),
                Field.Y: Row(y),
                Field.Y_ROW: y.row_bytes,
                Field.Y_LANE: LaneStride(y),
                Field.ACTIVATION: int(activation),
            },
        )

    def copied(self, x: AnyValue) -> Value:
        """The same in a value of its own."""
        buffer = x.place()
        made = self.add(
            Kind.COPY,
            {
                Field.ROWS: x.rows,
                Field.OUT: x.channels,
                Field.X: Row(buffer),
                Field.X_ROW: buffer.row_bytes,
                Field.X_LANE: LaneStride(buffer),
            },
        )
        return Value(self, x.rows, x.channels, made, slots=False)

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
    ) -> Value:
        outputs = weight.numel() // inside
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
            buffer = residual.place()
            fields |= {
                Field.RESIDUAL: Row(buffer),
                Field.RESIDUAL_ROW: buffer.row_bytes,
                Field.RESIDUAL_LANE: LaneStride(buffer),
                Field.RESIDUAL_ROWS: main_rows,
            }
        made = self.add(kind, fields)
        return Value(
            *(self, main_rows * rows_each, outputs // rows_each, made, behind),
            rows_each=rows_each,
        )

    def _read(self, state: Tensor, buffer: Buffer, row: int) -> None:
        """A leaf (lanes, channels, positions) to rows of a buffer from `row` on."""
        channels, positions = state.shape[1:]
        size = positions * FLOAT_BYTES
        source = Outside("before", self._leaf(state))
        self._turn(source, channels, positions, size, channels * size, buffer, Row(buffer, row))

    def _turn(
        self,
        source: Operand,
        channels: int,
        positions: int,
        row_bytes: int,
        lane_bytes: Operand,
        buffer: Buffer,
        target: Row,
    ) -> None:
        self.add(
            Kind.TURN,
            {
                Field.ROWS: channels,
                Field.OUT: positions,
                Field.X: source,
                Field.X_ROW: row_bytes,
                Field.X_LANE: lane_bytes,
                Field.Y: target,
                Field.Y_ROW: buffer.row_bytes,
                Field.Y_LANE: LaneStride(buffer),
            },
        )

    def _write(self, state: Tensor, buffer: Buffer, row: int) -> None:
        """Rows of a buffer from `row` on as the leaf that takes the place of this one."""
        channels, positions = state.shape[1:]
        index = self._leaf(state)
        self.replaced.add(index)
        size = positions * FLOAT_BYTES
        self.add(
            Kind.TURN,
            {
                Field.ROWS: positions,
                Field.OUT: channels,
                Field.X: Row(buffer, row),
                Field.X_ROW: buffer.row_bytes,
                Field.X_LANE: LaneStride(buffer),
                Field.Y: Outside("after", index),
                Field.Y_ROW: size,
                Field.Y_LANE: channels * size,
            },
        )

    def _fill(self, buffer: Buffer, row: int, rows: int) -> None:
        self.add(
            Kind.FILL,
            {
                Field.ROWS: rows,
                Field.OUT: buffer.channels,
                Field.Y: Row(buffer, row),
                Field.Y_ROW: buffer.row_bytes,
                Field.Y_LANE: LaneStride(buffer),
            },
        )

    def _angles(self, position: int, rows: int, dim: int, theta: float) -> Buffer:
        """cos and sin for positions, made once for all layers."""
        key = (position, dim, theta)
        if key not in self._rotations:
            frequency = self.constant(theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))
            table = Buffer(rows, dim)
            self._rotations[key] = table
            self.add(
                Kind.ROTARY,
                {
                    Field.ROWS: rows,
                    Field.OUT: dim // 2,
                    Field.A: Outside("before", position),
                    Field.B: frequency.ctypes.data,
                    Field.Y: Row(table),
                },
            )
        return self._rotations[key]

    def _leaf(self, tensor: Tensor) -> int:
        for index, leaf in enumerate(self.leaves):
            if leaf is tensor:
                return index
        raise CannotLower("a layer has state that is not in its tree")


def _lane_bytes(leaf: Tensor) -> int:
    return leaf[0].numel() * leaf.element_size()


def _same(weight: Tensor) -> Tensor:
    return weight


def _by_tap(weight: Tensor) -> Tensor:
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


