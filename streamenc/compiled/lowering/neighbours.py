"""Neighbours along time that become channels, and channels that become neighbours."""

from __future__ import annotations

from streamenc.compiled.lowering.sheet import Sheet
from streamenc.compiled.values import (
    FLOAT_BYTES,
    AnyValue,
    Buffer,
    Instruction,
    LaneStride,
    Row,
    Value,
)
from streamenc.errors import CannotLower
from streamenc_kernels.compiled.instruction import Activation, Field, Kind


class Neighbours(Sheet):
    """What of a step gives other rows to the same numbers."""

    def patched(self, x: AnyValue, size: int, *, stacked: bool = False) -> Value:
        """`size` rows as one: all positions of the first channel come first, or all channels of
        the first position where `stacked`."""
        if x.rows % size:
            raise CannotLower(f"{x.rows} positions are no whole number of patches of {size}")
        buffer, y = x.place(), Buffer(x.rows // size, x.channels * size)
        if stacked:
            return self._turned(buffer, 1, size * x.channels, y)
        return self._turned(buffer, size, x.channels, y)

    def unpatched(self, x: AnyValue, size: int) -> Value:
        """Undoes `patched`, where it is not stacked."""
        channels = x.channels // size
        return self._turned(x.place(), channels, size, Buffer(x.rows * size, channels))

    def _turned(self, x: Buffer, rows: int, columns: int, y: Buffer) -> Value:
        """One block of `rows` by `columns` numbers after the other, turned round."""
        size = rows * columns
        blocks = x.rows * x.channels // size
        if rows == 1 or columns == 1:
            maker = self._block(Kind.COPY, blocks, size, Row(x), size, Row(y), size, x, y)
        else:
            for index in range(blocks):
                source = Row(x, index * size // x.channels)
                target = Row(y, index * size // y.channels)
                maker = self._block(Kind.TURN, rows, columns, source, columns, target, rows, x, y)
        made = Value(self, y.rows, y.channels, maker, slots=False)
        made.placed.append((Activation.NONE, y))
        return made

    def _block(
        self,
        kind: Kind,
        rows: int,
        columns: int,
        source: Row,
        source_row: int,
        target: Row,
        target_row: int,
        x: Buffer,
        y: Buffer,
    ) -> Instruction:
        return self.add(
            kind,
            {
                Field.ROWS: rows,
                Field.OUT: columns,
                Field.X: source,
                Field.X_ROW: source_row * FLOAT_BYTES,
                Field.X_LANE: LaneStride(x),
                Field.Y: target,
                Field.Y_ROW: target_row * FLOAT_BYTES,
                Field.Y_LANE: LaneStride(y),
            },
        )
