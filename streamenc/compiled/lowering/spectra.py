"""Short-time spectra of a stream, and a stream of short-time spectra."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from streamenc.compiled.lowering.sheet import Sheet, lane_bytes, rows_of
from streamenc.compiled.values import (
    AnyValue,
    Instruction,
    LaneStride,
    Operand,
    Outside,
    Row,
    Value,
)
from streamenc.compiled.weights import Array
from streamenc.errors import CannotLower
from streamenc_kernels.compiled.instruction import PANEL, Field, Kind

# Rows that a product of small matrices takes at once, and its columns.
BLOCK, COLUMNS = 8, 16


class Spectra(Sheet):
    """What of a step is a Fourier transform, or what stands before or behind one."""

    def transform(self, x: AnyValue, window: Tensor, state: Tensor, hop: int) -> Value:
        """The real and then the imaginary parts of the bins of windows, one for each hop.

        window  (N,), N even.
        state   The N - hop samples before x, (lanes, 1, N - hop).
        """
        before = state.shape[2]
        if x.channels != 1 or x.rows % hop or before != len(window) - hop:
            raise CannotLower(f"windows of {len(window)} every {hop} of {x.rows} samples")
        first, second = factors(len(window))
        buffer = x.place(before=before)
        self.read_leaf(state, buffer, -before)
        table = self.constant(_transform_table(window.detach().numpy(), first, second))
        fields: dict[Field, Operand] = {
            Field.ROWS: x.rows // hop,
            Field.X: Row(buffer, -before),
            Field.X_ROW: hop * buffer.row_bytes,
            Field.X_LANE: LaneStride(buffer),
            Field.A: first,
            Field.B: second,
            Field.C: table.ctypes.data,
        }
        made = self.add(Kind.TRANSFORM, fields)
        self.write_leaf(state, buffer, x.rows - before)
        return Value(self, x.rows // hop, len(window) + 2, made, slots=False)

    def inverse_transform(self, x: AnyValue, window: Tensor) -> Value:
        """N samples of the real and then the imaginary parts of their bins, behind a window (N,).

        The imaginary parts of the first and the last bin do not count.
        """
        if x.channels != len(window) + 2:
            raise CannotLower(f"{len(window)} samples of {x.channels} numbers")
        first, second = factors(len(window))
        table = self.constant(_inverse_table(window.detach().numpy(), first, second))
        fields: dict[Field, Operand] = {
            Field.ROWS: x.rows,
            **rows_of(x.place()),
            Field.A: first,
            Field.B: second,
            Field.C: table.ctypes.data,
        }
        return Value(self, x.rows, len(window), self.add(Kind.INVERT, fields), slots=False)

    def compressed_spectra(self, x: AnyValue, exponent: float, silence: float) -> Value:
        """As `compress_spectrum` of real and then imaginary parts: (lanes, rows, 3 * bins)."""
        bins = x.channels // 2
        constants = np.array([exponent / 2, silence], np.float32)
        made = self._of_bins(Kind.COMPRESS, x, bins, constants)
        return Value(self, x.rows, 3 * bins, made, slots=False)

    def directed_spectra(self, x: AnyValue, silence: float) -> Value:
        """Real and imaginary parts of which bins have the logarithms of magnitudes, up to 0, and
        then two parts of any size, which have their phases."""
        bins = x.channels // 3
        made = self._of_bins(Kind.DIRECT, x, bins, np.array([silence], np.float32))
        return Value(self, x.rows, 2 * bins, made, slots=False)

    def overlap(self, x: AnyValue, state: Tensor, *, limit: float | None = None) -> Value:
        """The sum of windows of several hops, each a hop behind the one before.

        state  What earlier windows add to the next hops, (lanes, hops of a window - 1, hop).
        limit  The largest size of a sample.
        """
        index = self.leaf(state)
        self.replaced.add(index)
        late, hop = state.shape[1:]
        if x.channels != (late + 1) * hop:
            raise CannotLower(f"windows of {x.channels} samples every {hop}")
        most = None if limit is None else self.constant(np.array([limit], np.float32))
        fields: dict[Field, Operand] = {
            Field.ROWS: x.rows,
            Field.OUT: hop,
            **rows_of(x.place()),
            Field.A: late + 1,
            Field.B: Outside("before", index),
            Field.C: Outside("after", index),
            Field.D: lane_bytes(state),
            Field.E: 0 if most is None else most.ctypes.data,
        }
        made = self.add(Kind.OVERLAP, fields)
        return Value(self, x.rows * hop, 1, made, slots=False, rows_each=hop)

    def _of_bins(self, kind: Kind, x: AnyValue, bins: int, constants: Array) -> Instruction:
        return self.add(
            kind,
            {
                Field.ROWS: x.rows,
                Field.OUT: bins,
                **rows_of(x.place()),
                Field.C: self.constant(constants).ctypes.data,
            },
        )


def factors(size: int) -> tuple[int, int]:
    """Two factors of an even number that a transform of so many numbers is fastest with.

    Raises CannotLower.
    """
    if size % 2:
        raise CannotLower(f"a transform of {size} numbers, which is odd, has no instructions")

    def vectors(first: int) -> int:
        """That its products take, there or back."""
        half, second = first // 2 + 1, size // first
        inner = _up(2 * half, BLOCK) * first * (_up(second, COLUMNS) // COLUMNS)
        return inner + _up(2 * second, BLOCK) * 2 * second * (_up(half, COLUMNS) // COLUMNS)

    pairs = [
        first
        for first in range(1, size + 1)
        if size % first == 0 and first // 2 + 1 <= PANEL and size // first <= PANEL
    ]
    if not pairs:
        raise CannotLower(f"a transform of {size} numbers has no two factors up to {PANEL}")
    first = min(pairs, key=vectors)
    return first, size // first


def _transform_table(window: Array, first: int, second: int) -> Array:
    """What the instruction TRANSFORM reads; see the function that runs it."""
    half = first // 2 + 1
    inner, turns = _angles(first, half, first), _angles(first * second, half, second)
    outer = _angles(second, second, second)
    return _joined(
        window,
        _filled(np.concatenate((np.cos(inner), -np.sin(inner)))),
        np.stack((np.cos(turns), -np.sin(turns))),
        _filled(
            np.block([[np.cos(outer), np.sin(outer)], [-np.sin(outer), np.cos(outer)]]),
        ),
    )


def _inverse_table(window: Array, first: int, second: int) -> Array:
    """What the instruction INVERT reads."""
    half = first // 2 + 1
    inner, turns = _angles(first, first, half), _angles(first * second, half, second)
    outer = _angles(second, second, second)
    # Each sum but the first, and the last of an even number, stands for its mirror image as well.
    parts = np.full(half, 2 / (first * second))
    parts[[0, -1] if first % 2 == 0 else [0]] = 1 / (first * second)
    return _joined(
        window,
        _filled(
            np.block([[np.cos(outer), -np.sin(outer)], [np.sin(outer), np.cos(outer)]]),
        ),
        np.stack((np.cos(turns), np.sin(turns))),
        _filled(np.concatenate((np.cos(inner) * parts, -np.sin(inner) * parts), axis=1)),
    )


def _angles(size: int, rows: int, columns: int) -> Array:
    """2 pi * row * column / size, of the remainder, so that they are exact."""
    products = np.outer(np.arange(rows), np.arange(columns)) % size
    angles: Array = 2 * np.pi / size * products
    return angles


def _filled(matrix: Array) -> Array:
    """With rows of zeros up to a whole number of blocks."""
    missing = np.zeros((_up(len(matrix), BLOCK) - len(matrix), matrix.shape[1]))
    return np.concatenate((matrix, missing))


def _joined(*parts: Array) -> Array:
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
