"""Codebooks: the search and the look-ups of a model's residual quantisers, as instructions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamenc.compiled.scores import Scores, scored
from streamenc.compiled.values import FLOAT_BYTES
from streamenc.compiled.weights import Arena, Array, Panels, aligned, pack
from streamenc.layers.quantize import ResidualVQ
from streamenc_kernels.compiled.instruction import FIELDS, Field, Kind

if TYPE_CHECKING:
    from streamenc.compiled.team import Needs, Team

# For more vectors at once, reading the codebooks is not what takes the time.
MOST_ROWS = 64
# Searches of fewer multiplications are done before a helper has heard of them.
LEAST_SHARED = 1 << 21
CODE_BYTES = 8


class Books(NamedTuple):
    """Where a quantiser's entries are, (levels, entries, dim) float32."""

    address: int
    levels: int
    entries: int
    dim: int


class Searched(NamedTuple):
    """What a search needs of a quantiser: its levels' scores, and the projection into their space,
    which is not rounded: codes are told by what comes out."""

    levels: list[Scores]
    project_in: Panels | None


class Searches(NamedTuple):
    """The instructions that give certain levels of certain quantisers.

    ops      (instructions, FIELDS).
    numbers  The same one behind the other.
    vectors  Which of the numbers are the vectors' address.
    codes    Which are addresses of codes, and how many bytes behind the first one.
    needs    Of the team that runs them.
    size     Multiplications for each vector.
    """

    ops: Array
    numbers: Array
    vectors: Array
    codes: tuple[Array, Array]
    needs: Needs
    size: int


class Codebooks:
    """Of the residual quantisers of a model, for few vectors in float32 on a CPU.

    A level of a search is two instructions: a product gives a score of each entry, by codebooks in
    int16, and NEAREST compares those that can be the nearest. The code is that of the entry nearest
    in float64 to what is left in float32, the lowest of those that are equally near; it does not
    depend on how many vectors are searched for at once.

    One search runs at a time. A copy of a quantiser has none of this.

    precision  "int16" or "float32": how entries are stored beside the quantisers' own.
    threads    How many threads of the team a search may take.
    """

    def __init__(
        self,
        quantizers: Sequence[ResidualVQ],
        precision: str,
        team: Team,
        threads: Callable[[], int] = lambda: 1,
    ) -> None:
        self._books: dict[int, Books] = {}
        for quantizer in quantizers:
            books = quantizer.codebooks
            assert books.dtype == torch.float32 and books.is_contiguous()
            self._books[id(quantizer)] = Books(books.data_ptr(), *books.shape)
        self.precision = precision
        self._turn = threading.Lock()
        self._team, self._threads = team, threads
        self._quantizers = list(quantizers)
        self._searched: dict[int, Searched] = {}
        self._searches: dict[tuple[tuple[int, ...], tuple[int, ...]], Searches] = {}
        self._rows = 0
        self._scores = self._left = aligned((0,), np.float32)
        self._look_up = aligned((1, FIELDS), np.int64)
        self._misses = aligned((1,), np.int64)
        self._look_up[0, [Field.KIND, Field.C]] = Kind.LOOK_UP, self._misses.ctypes.data
        self._fields = memoryview(self._look_up[0])

    def prepare_search(self) -> None:
        """Stores the entries for searches, which the first one would else wait for: who only looks
        codes up has no use for that."""
        with self._turn:
            if not self._searched:
                arena, short = Arena(), self.precision == "int16"
                self._searched = {id(q): _searched(q, short, arena) for q in self._quantizers}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def encode(
        self, quantizers: Sequence[ResidualVQ], x: Tensor, levels: Sequence[int]
    ) -> Tensor | None:
        """Codes as `streamenc.layers.quantize.encode` gives them; None where that takes other ways:
        of other tensors, of many vectors, or of none."""
        batch, _, frames = x.shape
        rows, total = batch * frames, sum(levels)
        fits = 0 < rows <= MOST_ROWS and total and x.dtype == torch.float32
        if not fits or x.device.type != "cpu":
            return None
        if not self._searched:
            self.prepare_search()
        x = x.transpose(1, 2).contiguous()
        codes = torch.empty(batch, frames, total, dtype=torch.int64)
        key = tuple(map(id, quantizers)), tuple(levels)
        with self._turn:
            if rows > self._rows:
                self._reserve(rows)
            searches = self._searches.get(key)
            if searches is None:
                searches = self._searches[key] = self._planned(quantizers, levels)
            places, offsets = searches.codes
            searches.numbers[searches.vectors] = x.data_ptr()
            searches.numbers[places] = offsets + codes.data_ptr()
            threads = self._threads() if rows * searches.size >= LEAST_SHARED else 1
            keep = (self._searched, self._scores, self._left, x, codes)
            self._team.run(searches.ops, rows, threads, searches.needs, keep)
        return codes.transpose(1, 2)

    def decode(self, quantizers: Sequence[ResidualVQ], codes: Tensor) -> Tensor | None:
        """Sums of entries as `streamenc.layers.quantize.decode` gives them; None where that takes
        other ways: of other tensors, of many codes, or where a code is no entry."""
        batch, given, frames = codes.shape
        fits = 0 < batch * frames <= MOST_ROWS and codes.dtype == torch.int64
        if not fits or codes.device.type != "cpu":
            return None
        books = [self._books[id(quantizer)] for quantizer in quantizers]
        width = sum(each.dim for each in books)
        y = torch.empty(batch, frames, width)
        address, to, fields = codes.data_ptr(), y.data_ptr(), self._fields
        lane, level, row = (CODE_BYTES * stride for stride in codes.stride())
        with self._turn:
            fields[Field.ROWS] = frames
            fields[Field.X_ROW], fields[Field.X_LANE], fields[Field.B] = row, lane, level
            fields[Field.Y_ROW] = width * FLOAT_BYTES
            fields[Field.Y_LANE] = frames * width * FLOAT_BYTES
            for start, levels, entries, dim in books:
                taken = min(levels, given)
                fields[Field.PANELS] = start
                fields[Field.E], fields[Field.OUT], fields[Field.A] = entries, dim, taken
                fields[Field.X], fields[Field.Y] = address, to
                self._team.run(self._look_up, batch, 1)
                given -= taken
                address += taken * level
                to += dim * FLOAT_BYTES
            if self._misses[0]:
                self._misses[0] = 0
                return None
        return y.transpose(1, 2)

    def _reserve(self, rows: int) -> None:
        """Memory for so many vectors; instructions that name the old one are forgotten."""
        self._rows = min(MOST_ROWS, 2 * rows)
        known = [searched.levels[0] for searched in self._searched.values()]
        entries = max(len(level.shift) for level in known)
        dim = max(books.dim for books in self._books.values())
        self._scores = aligned((self._rows, entries), np.float32)
        self._left = aligned((self._rows, dim), np.float32)
        self._searches.clear()

    def _planned(self, quantizers: Sequence[ResidualVQ], levels: Sequence[int]) -> Searches:
        made: list[dict[Field, int]] = []
        vectors: list[int] = []
        codes: list[int] = []
        for quantizer, count in zip(quantizers, levels, strict=True):
            books, searched = quantizer.codebooks, self._searched[id(quantizer)]
            dim = books.shape[2]
            outside, left = (0, dim * FLOAT_BYTES), (self._left.ctypes.data, dim * FLOAT_BYTES)
            at = outside
            if searched.project_in is not None and count:
                assert quantizer.project_in is not None
                channels = quantizer.project_in.shape[1]
                vectors.append(len(made))
                made.append(
                    _product(searched.project_in, dim, channels, (0, channels * FLOAT_BYTES), left)
                )
                at = left
            for level in range(count):
                scores, book = searched.levels[level], books[level]
                padded = len(scores.shift)
                place = (self._scores.ctypes.data, padded * FLOAT_BYTES)
                if at is outside:
                    vectors += [len(made), len(made) + 1]
                made.append(
                    _product(scores.panels, padded, dim, at, place)
                    | {
                        Field.SCALE: scores.factor.ctypes.data,
                        Field.BIAS: scores.shift.ctypes.data,
                    }
                )
                codes.append(len(made))
                made.append(
                    {
                        Field.KIND: Kind.NEAREST,
                        Field.OUT: padded,
                        Field.INSIDE: dim,
                        Field.PANELS: book.data_ptr(),
                        Field.SCALE: scores.slope.ctypes.data,
                        Field.BIAS: scores.base.ctypes.data,
                        Field.X: at[0],
                        Field.X_LANE: at[1],
                        Field.Y: left[0] if level + 1 < count else 0,
                        Field.Y_LANE: left[1],
                        Field.A: place[0],
                        Field.B: place[1],
                        Field.D: sum(levels) * CODE_BYTES,
                        Field.E: len(book),
                        Field.F: scores.limit.ctypes.data,
                    }
                )
                at = left
        ops = aligned((len(made), FIELDS), np.int64)
        for index, fields in enumerate(made):
            ops[index, list(fields)] = list(fields.values())
        return Searches(
            ops,
            ops.reshape(-1),
            np.array(vectors) * FIELDS + Field.X,
            (np.array(codes) * FIELDS + Field.C, np.arange(len(codes)) * CODE_BYTES),
            self._team.needs(ops, self._rows),
            sum(fields[Field.OUT] * fields[Field.INSIDE] for fields in made),
        )


def _searched(quantizer: ResidualVQ, short: bool, arena: Arena) -> Searched:
    levels = [scored(book.numpy(), short=short, arena=arena) for book in quantizer.codebooks]
    project_in = quantizer.project_in
    if project_in is None:
        return Searched(levels, None)
    return Searched(levels, pack(project_in.detach().contiguous().numpy(), False, arena))


def _product(
    panels: Panels, out: int, inside: int, x: tuple[int, int], y: tuple[int, int]
) -> dict[Field, int]:
    """One row for each lane; x and y are an address and the bytes of a lane."""
    return {
        Field.KIND: Kind.PRODUCT,
        Field.ROWS: 1,
        Field.MAIN_ROWS: 1,
        Field.OUT: out,
        Field.INSIDE: inside,
        Field.PANELS: panels.table.ctypes.data,
        Field.X: x[0],
        Field.X_ROW: x[1],
        Field.X_LANE: x[1],
        Field.Y: y[0],
        Field.Y_ROW: y[1],
        Field.Y_LANE: y[1],
    }
