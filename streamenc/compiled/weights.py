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

from streamenc.compiled.tiledweights import Tiles, tile_shape, write_tiles
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
# So many numbers at once are rounded in the cache.
BLOCK_NUMBERS = 1 << 17
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
        self._tiles: dict[tuple[int, str], Tiles | None] = {}
        self._parts: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._alive: list[Tensor] = []

    def keep(self, weight: Tensor) -> None:
        """Has a parameter stay as it is, in float32."""
        self._alive.append(weight)
        self._rounded[id(weight)] = False

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
            first = id(weight) not in self._rounded
            rounds = self._rounded.setdefault(id(weight), short and self.precision == "int16")
            matrix = arrange(weight.detach()).contiguous().numpy()
            found = in_int16(matrix) if short and rounds else None
            if first and found is not None:
                _round(weight, arrange, matrix, found)
            self._panels[key] = _packed(matrix, found, self._arena)
        return self._panels[key]

    def tiles(self, weight: Tensor, arrange: Callable[[Tensor], Tensor], way: str) -> Tiles | None:
        """A parameter for matrix units; None where there are none, or where int16 does not hold all
        outputs well."""
        key = (id(weight), way)
        if key not in self._tiles:
            self._alive.append(weight)
            # Which imports numba; a Probe does without.
            from streamenc_kernels.compiled.planes.units import has_units

            short = has_units() and self.precision == "int16"
            first = id(weight) not in self._rounded
            if not short or not self._rounded.setdefault(id(weight), True):
                return None
            matrix = arrange(weight.detach()).contiguous().numpy()
            found = in_int16(matrix)
            if first:
                _round(weight, arrange, matrix, found)
            self._tiles[key] = None
            if found.fits.all():
                kept = aligned(found.scale.shape, np.float32)
                kept[:] = found.scale
                numbers = self._arena.take(tile_shape(*matrix.shape), np.int8)
                write_tiles(found.numbers, numbers)
                self._tiles[key] = Tiles(numbers, kept)
        return self._tiles[key]

    def parts(self, weight: Tensor, count: int) -> tuple[Tensor, ...]:
        """A parameter cut along its outputs: the same tensors for each program."""
        key = (id(weight), count)
        if key not in self._parts:
            self._alive.append(weight)
            self._parts[key] = weight.detach().chunk(count)
        return self._parts[key]


class Probe(Weights):
    """Weights for a plan that only shows whether there is one: none is read."""

    def panels(
        self, weight: Tensor, arrange: Callable[[Tensor], Tensor], way: str, *, short: bool
    ) -> Panels:
        return Panels(np.zeros((1, 2), np.int64), None, [])

    def tiles(self, weight: Tensor, arrange: Callable[[Tensor], Tensor], way: str) -> Tiles | None:
        return None


class InInt16(NamedTuple):
    """A matrix in 16 bits.

    numbers  (outputs, inside) int16.
    scale    (outputs,) float32; their product is near the matrix.
    fits     (outputs,), for each row whether int16 holds it well: what is rounded off is small
             beside its usual numbers, which a few large ones among them do not change, nor zeros.
    """

    numbers: Array
    scale: Array
    fits: Array


def in_int16(matrix: Array) -> InInt16:
    """Of a matrix (outputs, inside) of float32."""
    outputs, inside = matrix.shape
    numbers = torch.empty(outputs, inside, dtype=torch.int16)
    scale, fits = torch.empty(outputs), torch.empty(outputs, dtype=torch.bool)
    at_once = max(1, BLOCK_NUMBERS // inside)
    for start in range(0, outputs, at_once):
        rows = slice(start, start + at_once)
        x = torch.from_numpy(matrix[rows])
        sizes = x.abs()
        step = sizes.amax(dim=1).double() / LARGEST
        scale[rows] = step.clamp_min(torch.finfo(torch.float32).tiny).float()
        x_steps = x / scale[rows, None]
        whole = x_steps.round()
        numbers[rows] = whole
        off = scale[rows].double() * (whole - x_steps).square_().mean(dim=1).double().sqrt()
        roots = sizes.sqrt_().mean(dim=1).double()
        fits[rows] = off <= MOST_ROUNDING / USUAL_NORMAL * roots.square()
        if not fits[rows].all():
            roots *= inside / torch.count_nonzero(x, dim=1).clamp_min(1)
            fits[rows] = off <= MOST_ROUNDING / USUAL_NORMAL * roots.square()
    return InInt16(numbers.numpy(), scale.numpy(), fits.numpy())


def _round(
    weight: Tensor, arrange: Callable[[Tensor], Tensor], matrix: Array, found: InInt16
) -> None:
    """Rounds a parameter in place, and what `arrange` made of it, where that fits."""
    rounded = torch.from_numpy(matrix)
    keeps = torch.from_numpy(~found.fits)
    kept = rounded[keeps]
    torch.mul(torch.from_numpy(found.numbers), torch.from_numpy(found.scale)[:, None], out=rounded)
    rounded[keeps] = kept
    if matrix.ctypes.data == weight.data_ptr():
        return  # it is the parameter itself
    # Not by a gradient, which would go the way back by itself: torch imports half a second's worth
    # of other packages for the first one.
    places = arrange(torch.arange(weight.numel()).view(weight.shape)).reshape(-1)
    with torch.no_grad():
        weight.detach().view(-1)[places] = rounded.reshape(-1)


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
    return _packed(matrix, in_int16(matrix) if short else None, arena)


def _packed(matrix: Array, found: InInt16 | None, arena: Arena) -> Panels:
    outputs, inside = matrix.shape
    count = -(-outputs // PANEL)
    table = aligned((count, 2), np.int64)
    kept: list[Array] = []
    scale = None
    if found is not None:
        scale = aligned((outputs,), np.float32)
        scale[...] = found.scale
    for index in range(count):
        rows = slice(index * PANEL, (index + 1) * PANEL)
        short = found is not None and bool(found.fits[rows].all())
        panel = arena.take((inside, PANEL), np.int16 if short else np.float32)
        numbers = torch.from_numpy(found.numbers[rows] if short and found else matrix[rows])
        torch.from_numpy(panel)[:, : len(numbers)].copy_(numbers.T)
        if scale is not None and not short:
            scale[rows] = 1
        kept.append(panel)
        table[index] = panel.ctypes.data, WeightType.INT16 if short else WeightType.FLOAT32
    return Panels(table, scale, kept)
