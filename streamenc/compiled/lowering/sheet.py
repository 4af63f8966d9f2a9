"""Sheet: the instructions of a step so far, and how states, inputs and constants come into them."""

from __future__ import annotations

from torch import Tensor

from streamenc.compiled.values import (
    FLOAT_BYTES,
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
from streamenc.state import State, leaves
from streamenc_kernels.compiled.instruction import Activation, Field, Kind


class Sheet:
    """What all that layers ask for is made of.

    Attributes:
        hops: Of the step.
        leaves: The tensors of the state.
        instructions: So far.
        constants: What has to stay alive beside the weights.
        replaced: Indices of the leaves that a step gives new ones for; the others stay, written in
            place.
        output: What comes out, once that is known.
    """

    def __init__(self, weights: Weights, state: State, hops: int) -> None:
        self.weights, self.hops = weights, hops
        self.leaves = list(leaves(state))
        self.instructions: list[Instruction] = []
        self.constants: list[Array] = []
        self.replaced: set[int] = set()
        self.output: Value | None = None

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
        self.turn(Outside("x"), x.channels, x.rows, size, x.channels * size, buffer, Row(buffer))

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
                **rows_of(buffer),
            },
        )
        return Value(self, x.rows, x.channels, made, slots=False)

    def read_leaf(self, state: Tensor, buffer: Buffer, row: int) -> None:
        """A leaf (lanes, channels, positions) to rows of a buffer from `row` on."""
        channels, positions = state.shape[1:]
        size = positions * FLOAT_BYTES
        source = Outside("before", self.leaf(state))
        self.turn(source, channels, positions, size, channels * size, buffer, Row(buffer, row))

    def turn(
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

    def write_leaf(self, state: Tensor, buffer: Buffer, row: int) -> None:
        """Rows of a buffer from `row` on as the leaf that takes the place of this one."""
        channels, positions = state.shape[1:]
        index = self.leaf(state)
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

    def residual_fields(self, residual: AnyValue) -> dict[Field, Operand]:
        """The fields of an instruction that adds all rows of a value."""
        buffer = residual.place()
        return {
            Field.RESIDUAL: Row(buffer),
            Field.RESIDUAL_ROW: buffer.row_bytes,
            Field.RESIDUAL_LANE: LaneStride(buffer),
            Field.RESIDUAL_ROWS: residual.rows,
        }

    def fill(self, buffer: Buffer, row: int, rows: int) -> None:
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

    def leaf(self, tensor: Tensor) -> int:
        for index, leaf in enumerate(self.leaves):
            if leaf is tensor:
                return index
        raise CannotLower("a layer has state that is not in its tree")


def lane_bytes(leaf: Tensor) -> int:
    return leaf[0].numel() * leaf.element_size()


def rows_of(buffer: Buffer) -> dict[Field, Operand]:
    """The fields of an instruction that reads a buffer's rows."""
    return {
        Field.X: Row(buffer),
        Field.X_ROW: buffer.row_bytes,
        Field.X_LANE: LaneStride(buffer),
    }
