"""Layers that go through time position by position."""

from __future__ import annotations

from torch import Tensor, nn

from streamenc.compiled.lowering.matrices import Products, same
from streamenc.compiled.lowering.sheet import lane_bytes, rows_of
from streamenc.compiled.values import (
    FLOAT_BYTES,
    AnyValue,
    Buffer,
    LaneStride,
    Operand,
    Outside,
    Row,
    Value,
)
from streamenc_kernels.compiled.instruction import Activation, Field, Kind


class Recurrent(Products):
    """What of a step needs the output of the position before."""

    def recurrent(
        self, x: AnyValue, lstm: nn.LSTM, layer: int, hidden: Tensor, cell: Tensor
    ) -> Value:
        """A layer of an LSTM, whose hidden and cell states are leaves (lanes, layers, channels).

        What the inputs give is one product over all positions; what the hidden state gives is one
        for each, added to it.
        """
        channels = lstm.hidden_size
        weight_ih, weight_hh, bias_ih, bias_hh = (
            lstm.get_parameter(f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        buffer = x.place()
        given = self._product(
            *(x.rows, x.channels, Row(buffer), buffer.row_bytes, LaneStride(buffer)),
            *(weight_ih, same, "rows", (bias_ih + bias_hh).detach()),
        ).place()
        y, h, c = Buffer(x.rows, channels), Buffer(1, channels), Buffer(1, channels)
        size, each = channels * FLOAT_BYTES, lane_bytes(hidden)
        came = [Outside("before", self.leaf(leaf), layer * size) for leaf in (hidden, cell)]
        goes = [Outside("after", leaf, offset) for _, leaf, offset in came]
        self.replaced |= {leaf for _, leaf, _ in came}
        for source, buffer in zip(came, (h, c), strict=True):
            self._move(channels, source, each, Row(buffer), LaneStride(buffer))
        before = Row(h)
        for t in range(x.rows):
            gates = self._product(
                *(1, channels, before, size, LaneStride(before.buffer)),
                *(weight_hh, same, "rows", None),
            )
            assert gates.maker is not None
            gates.maker.fields |= {
                Field.RESIDUAL: Row(given, t),
                Field.RESIDUAL_ROW: given.row_bytes,
                Field.RESIDUAL_LANE: LaneStride(given),
                Field.RESIDUAL_ROWS: 1,
            }
            following = Buffer(1, channels)
            before = Row(y, t)
            maker = self.add(
                Kind.CELL,
                {
                    Field.OUT: channels,
                    **rows_of(gates.place()),
                    Field.A: Row(c),
                    Field.B: LaneStride(c),
                    Field.C: Row(following),
                    Field.D: LaneStride(following),
                    Field.Y: before,
                    Field.Y_LANE: LaneStride(y),
                },
            )
            c = following
        self._move(channels, before, LaneStride(y), goes[0], each)
        self._move(channels, Row(c), LaneStride(c), goes[1], each)
        made = Value(self, x.rows, channels, maker, slots=False)
        made.placed.append((Activation.NONE, y))
        return made

    def _move(
        self, channels: int, x: Operand, x_lane: Operand, y: Operand, y_lane: Operand
    ) -> None:
        """A row of each lane to another place."""
        self.add(
            Kind.COPY,
            {
                Field.ROWS: 1,
                Field.OUT: channels,
                Field.X: x,
                Field.X_LANE: x_lane,
                Field.Y: y,
                Field.Y_LANE: y_lane,
            },
        )
