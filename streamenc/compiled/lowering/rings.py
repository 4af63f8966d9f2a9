"""Attention over rings of keys and values."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from streamenc.compiled.lowering.sheet import Sheet, rows_of
from streamenc.compiled.values import Buffer, Outside, Row, Value
from streamenc.compiled.weights import Weights
from streamenc.state import State
from streamenc_kernels.compiled.instruction import Field, Kind


class Rings(Sheet):
    """What of a step attends to what was before."""

    def __init__(self, weights: Weights, state: State, hops: int) -> None:
        super().__init__(weights, state, hops)
        self._rotations: dict[tuple[int, int, float], Buffer] = {}

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
        at = self.leaf(position)
        angles = self._angles(at, qkv.rows, dim, theta)
        buffer = qkv.place()
        made = self.add(
            Kind.ATTEND,
            {
                Field.ROWS: qkv.rows,
                Field.OUT: heads,
                Field.INSIDE: dim,
                **rows_of(buffer),
                Field.A: Outside("before", at),
                Field.B: Outside("before", self.leaf(keys)),
                Field.C: slots,
                Field.D: window,
                Field.E: Outside("before", self.leaf(values)),
                Field.F: Row(angles),
            },
        )
        return Value(self, qkv.rows, heads * dim, made, slots=False)

    def chunk_attention(
        self,
        qkv: Value,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        chunk: int,
        span: int,
    ) -> Value:
        """What the heads attend to, for spans of positions of which the first `chunk` enter the
        ring; see `attend_chunks`. keys and values (lanes, heads, positions, dim) are written in
        place where there is one span; else they are new ones."""
        heads, ring, dim = keys.shape[1:]
        leaves = [self.leaf(keys), self.leaf(values)]
        goes = "before"
        if qkv.rows > span:
            self.replaced |= set(leaves)
            goes = "after"
        buffer = qkv.place()
        made = self.add(
            Kind.CHUNKS,
            {
                Field.ROWS: qkv.rows,
                Field.OUT: heads,
                Field.INSIDE: dim,
                Field.MAIN_ROWS: chunk,
                **rows_of(buffer),
                Field.A: Outside("before", self.leaf(position)),
                Field.B: Outside("before", leaves[0]),
                Field.C: Outside(goes, leaves[0]),
                Field.D: Outside("before", leaves[1]),
                Field.E: Outside(goes, leaves[1]),
                Field.F: ring // chunk,
                Field.G: span,
            },
        )
        return Value(self, qkv.rows, heads * dim, made, slots=False)

    def advance(self, position: Tensor, rows: int) -> None:
        """Positions (lanes,) that go on by `rows`."""
        index = self.leaf(position)
        self.replaced.add(index)
        self.add(
            Kind.ADVANCE,
            {
                Field.ROWS: rows,
                Field.A: Outside("before", index),
                Field.B: Outside("after", index),
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
