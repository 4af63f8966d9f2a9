"""Layers whose view ends with the chunk of each frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from streamenc.compiled.lowering.matrices import ACTIVATIONS, Products, by_tap
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


class InChunks(Products):
    """What of a step goes chunk by chunk."""

    def chunk_convolution(
        self,
        x: AnyValue,
        weight: Tensor,
        bias: Tensor,
        state: Tensor,
        *,
        groups: int,
        chunk: int,
        activation: str,
    ) -> Value:
        """activation(conv(x)) in groups, with zeros behind each chunk; the kernel is the rest.

        weight  (out, in / groups, kernel).
        state   The positions before x that the first one sees, (lanes, in, kernel // 2).
        """
        wide, kernel = weight.shape[1:]
        before, out = state.shape[2], weight.shape[0] // groups
        # Taps that meet nothing but the zeros are left out.
        taps = min(kernel, before + chunk)
        zeros = max(0, taps - 1 - before)
        buffer = x.place(before=before)
        self.read_leaf(state, buffer, -before)
        y = Buffer(x.rows, weight.shape[0])
        parts = self.weights.parts(weight, groups)
        for start in range(0, x.rows, chunk):
            for group in range(groups):
                seen = Buffer(before + chunk + zeros, wide)
                source = Row(buffer, start - before, group * wide)
                self._copy_rows(source, before + chunk, wide, Row(seen))
                if zeros:
                    self.fill(seen, before + chunk, zeros)
                made = self._product(
                    *(chunk, taps * wide, Row(seen), seen.row_bytes, LaneStride(seen)),
                    *(parts[group], by_tap, "taps", bias[group * out : (group + 1) * out]),
                    outputs=out,
                )
                assert made.maker is not None
                made.maker.fields |= {
                    Field.Z: Row(y, start, group * out),
                    Field.Z_ROW: y.row_bytes,
                    Field.Z_LANE: LaneStride(y),
                    Field.ACTIVATION: int(ACTIVATIONS[activation]),
                }
        self.write_leaf(state, buffer, x.rows - before)
        return self._lying(y)

    def spans(self, x: AnyValue, behind: Tensor, chunk: int) -> Value:
        """Chunks, each with what is computed along with it: the positions of the next ones.

        behind  The positions before x, (lanes, positions, channels); those of x take their place.
        """
        beside = behind.shape[1]
        buffer = x.place(before=beside)
        index = self.leaf(behind)
        self.replaced.add(index)
        size, each = x.channels * FLOAT_BYTES, lane_bytes(behind)
        fields: dict[Field, Operand] = {Field.ROWS: beside, Field.OUT: x.channels}
        came: dict[Field, Operand] = {
            Field.X: Outside("before", index),
            Field.X_ROW: size,
            Field.X_LANE: each,
        }
        goes: dict[Field, Operand] = {
            Field.Y: Outside("after", index),
            Field.Y_ROW: size,
            Field.Y_LANE: each,
        }
        first: dict[Field, Operand] = {
            Field.Y: Row(buffer, -beside),
            Field.Y_ROW: buffer.row_bytes,
            Field.Y_LANE: LaneStride(buffer),
        }
        self.add(Kind.COPY, {**fields, **came, **first})
        last = {**rows_of(buffer), Field.X: Row(buffer, x.rows - beside)}
        self.add(Kind.COPY, {**fields, **last, **goes})
        span = chunk + beside
        y = Buffer(x.rows // chunk * span, x.channels)
        for number in range(x.rows // chunk):
            source = Row(buffer, number * chunk - beside)
            self._copy_rows(source, span, x.channels, Row(y, number * span))
        return self._lying(y)

    def joined(self, parts: Sequence[AnyValue], chunk: int, span: int) -> Value:
        """Values one behind the other in the channels: of each span the chunk alone."""
        rows = parts[0].rows // span * chunk
        y = Buffer(rows, sum(part.channels for part in parts))
        channel = 0
        for part in parts:
            buffer = part.place()
            for number in range(rows // chunk):
                target = Row(y, number * chunk, channel)
                self._copy_rows(Row(buffer, number * span), chunk, part.channels, target)
            channel += part.channels
        return self._lying(y)

    def _copy_rows(self, x: Row, rows: int, channels: int, y: Row) -> None:
        self.add(
            Kind.COPY,
            {
                Field.ROWS: rows,
                Field.OUT: channels,
                Field.X: x,
                Field.X_ROW: x.buffer.row_bytes,
                Field.X_LANE: LaneStride(x.buffer),
                Field.Y: y,
                Field.Y_ROW: y.buffer.row_bytes,
                Field.Y_LANE: LaneStride(y.buffer),
            },
        )

    def _lying(self, y: Buffer) -> Value:
        """A value that several instructions have made."""
        made = Value(self, y.rows, y.channels, None)
        made.placed.append((Activation.NONE, y))
        return made
