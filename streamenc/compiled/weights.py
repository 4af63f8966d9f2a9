"""Weights as programs read them: panels of outputs, in int16 with a scale for each where that is
close enough."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamenc_kernels.compiled.instruction import PANEL, WeightType

Array = NDArray[Any]
# The largest number that a weight becomes. 256 times that of int8, so that weights that were int8
# with a scale for each row, as nano's are stored, become int16 without another rounding.
LARGEST = 127 * 256
# Rounding to steps of max / LARGEST is off by a step / sqrt(12), root mean square. An output whose
# weights would be off by more than this part of their usual size keeps them as they are: its
# largest weight is more than 16 times as large as usual.
MOST_ROUNDING = 1.5e-4
# Of normally distributed numbers, the square of the mean root of their size, over their root mean
# square: (2^(1/4) gamma(3/4) / sqrt(pi))^2.
USUAL_NORMAL = 0.676
LINE_BYTES = 64
# Tiles of few rows ask for weights so far ahead that they may touch what lies behind the last ones.
SPARE_BYTES = 8192
ARENA_BYTES, LARGE_PAGE_BYTES = 16 << 20, 2 << 20


class Panels(NamedTuple):
    """A matrix as products take it.

    table  (panels, 2) int64, the address and the WeightType of each.
    scale  (outputs,) float32, or None where all panels are float32.
    kept   What has to stay alive.
    """

    table: Array
    scale: Array | None
    kept: list[Array]


class Weights:
    """The weights of one model for all its programs.

    precision  "int16" or "float32".
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._arena = Arena()
        self._panels: dict[tuple[int, str, bool], Panels] = {}
        self._rounded: dict[int, bool] = {}
        self._parts: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._alive: list[Tensor] = []

    def panels(
        self, weight: Tensor, arrange: Callable[[Tensor], Tensor], way: str, *, short: bool
    ) -> Panels:
        """A parameter as panels.

        arrange  Makes a matrix (outputs, inside) of it, of each number once.
        way      Names `arrange`.
        short    Whether it is bound by reading it, so that it should be int16.

        The first call for a parameter decides whether it is rounded. If so the parameter itself is
        rounded too, so that torch computes with the same numbers.
        """
        key = (id(weight), way, short)
        if key not in self._panels:
            self._alive.append(weight)
            rounds = self._rounded.setdefault(id(weight), short and self.precision == "int16")
            if rounds:
                self._round(weight, arrange)
            matrix = arrange(weight.detach()).contiguous().numpy()
            self._panels[key] = pack(matrix, short and rounds, self._arena)
        return self._panels[key]

    def parts(self, weight: Tensor, count: int) -> tuple[Tensor, ...]:
        """A parameter cut along its outputs: the same tensors for each program."""
        key = (id(weight), count)
        if key not in self._parts:
            self._alive.append(weight)
            self._parts[key] = weight.detach().chunk(count)
        return self._parts[key]

    def _round(self, weight: Tensor, arrange: Callable[[Tensor], Tensor]) -> None:
        """Rounds a parameter in place to what int16 and a scale for each output can say."""
        places = arrange(torch.arange(weight.numel()).view(weight.shape))
        matrix = arrange(weight.detach()).contiguous().numpy()
        numbers, scale = rounded(matrix)
        fits = fits_int16(matrix)
        matrix = np.where(fits[:, None], numbers * scale[:, None], matrix)
        with torch.no_grad():
            flat = weight.detach().view(-1)
            flat[places.reshape(-1)] = torch.from_numpy(matrix.reshape(-1).astype(np.float32))


class Probe(Weights):
    """Weights for a plan that only shows whether there is one: none is read."""

    def panels(
        self, weight: Tensor, arrange: Callable[[Tensor], Tensor], way: str, *, short: bool
    ) -> Panels:
        return Panels(np.zeros((1, 2), np.int64), None, [])


def rounded(matrix: Array) -> tuple[Array, Array]:
    """Whole numbers and a scale for each row, whose product is near the matrix."""
    scale = np.abs(matrix).max(axis=1).astype(np.float64) / LARGEST
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    numbers: Array = np.rint(matrix / scale[:, None])
    return numbers, scale


def fits_int16(matrix: Array) -> Array:
    """For each row, whether int16 holds it well: what is rounded off is small beside its usual
    numbers, which a few large ones among them do not change, nor zeros."""
    numbers, scale = rounded(matrix)
    numbers -= matrix / scale[:, None]
    off = scale * np.sqrt(np.square(numbers).mean(axis=1, dtype=np.float64))
    nonzero = np.maximum(np.count_nonzero(matrix, axis=1), 1)
    roots = np.sqrt(np.abs(matrix)).sum(axis=1, dtype=np.float64) / nonzero
    fits: Array = np.asarray(off <= MOST_ROUNDING / USUAL_NORMAL * np.square(roots))
    return fits


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that begin on a line of the cache, with room behind them."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE_BYTES + SPARE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    lines: Array = raw[start : start + size].view(dtype).reshape(shape)
    return lines


class Arena:
    """Memory for weights, in large pieces: on Linux of large pages, as each step goes through all
    of it and would ask for the address of each small one."""

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros that begin on a line of the cache."""
        size = -(-math.prod(shape) * np.dtype(dtype).itemsize // LINE_BYTES) * LINE_BYTES
        if size + SPARE_BYTES > len(self._left):
            self._left = _piece(size + SPARE_BYTES)
        taken, self._left = self._left[:size], self._left[size:]
        values: Array = taken.view(dtype)[: math.prod(shape)].reshape(shape)
        return values


def _piece(size: int) -> Array:
    piece = mmap.mmap(-1, max(size, ARENA_BYTES) + LARGE_PAGE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            piece.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(piece, np.uint8)
    return values[-values.ctypes.data % LARGE_PAGE_BYTES :]


def pack(matrix: Array, short: bool, arena: Arena) -> Panels:
    """A matrix (outputs, inside) as panels.

    short  Whether those that int16 holds well become int16.
    """
    outputs, inside = matrix.shape
    count = -(-outputs // PANEL)
    table = aligned((count, 2), np.int64)
    kept: list[Array] = []
    scale = aligned((outputs,), np.float32) if short else None
    for index in range(count):
        rows = matrix[index * PANEL : (index + 1) * PANEL]
        short_here = short and bool(fits_int16(rows).all())
        panel = arena.take((inside, PANEL), np.int16 if short_here else np.float32)
        if short_here:
            assert scale is not None
            numbers, scale[index * PANEL : index * PANEL + len(rows)] = rounded(rows)
            panel[:, : len(rows)] = numbers.T
        else:
            panel[:, : len(rows)] = rows.T
            if scale is not None:
                scale[index * PANEL : index * PANEL + len(rows)] = 1
        kept.append(panel)
        table[index] = panel.ctypes.data, WeightType.INT16 if short_here else WeightType.FLOAT32
    return Panels(table, scale, kept)
