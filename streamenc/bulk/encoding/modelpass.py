"""ModelPass: one item through one model, alone, from what the model takes to its tokens."""

from __future__ import annotations

import numpy as np

from streamenc.bulk.items import Tokens
from streamenc.bulk.tokenizejob import ModelAsk
from streamenc.codec import Codec
from streamenc.errors import InputError, StreamencError
from streamenc.models.signal import Scaled, Signal, items
from streamenc.nodes.codes.interleaving import Layout, Layouter

MAX_TOKEN_BYTES = 2**30  # of an item: it is one row, and a row is written as one
# Small pieces are joined: an array for each frame would take more memory than what is in it.
JOINED_PIECES = 256


class Gathered:
    """The output of one item, piece by piece."""

    def __init__(self, codec: Codec, ask: ModelAsk, layout: str) -> None:
        spec = codec.spec
        self._dtype = ask.dtype or spec.output.dtype
        self._pieces: list[np.ndarray] = []
        self._small: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        self._gaps: list[int] = []
        self._frames = self._bytes = 0
        self._layouter = None
        if layout != "books" and spec.output.kind == "codes":
            books = ask.codebooks or spec.output.channels
            self._layouter = Layouter(Layout.of(layout), books, spec.codebook_size)

    def add(self, signal: Signal) -> None:
        """Takes what a stream by itself gave. Raises InputError where there is too much for one
        row."""
        if not items(signal):
            return
        scales = None
        if isinstance(signal, Scaled):
            scales, signal = signal.scale[0, 0].cpu().numpy(), signal.codes
        self.put(signal[0].cpu().numpy(), scales)

    def put(self, data: np.ndarray, scales: np.ndarray | None = None) -> None:
        """The same as arrays, (rows, frames, ...) and (frames,), which nobody else writes."""
        if scales is not None:
            self._scales.append(scales)
        self._small.append(data.astype(self._dtype, copy=False))
        if len(self._small) >= JOINED_PIECES or data.shape[1] >= JOINED_PIECES:
            self._join()

    def break_off(self) -> None:
        """The next piece does not follow on."""
        self._join()
        if self._layouter is not None:
            self._put(self._layouter.flush(), laid_out=True)
        if self._frames:
            self._gaps.append(self._frames)

    def tokens(self, nothing: np.ndarray) -> Tokens:
        """All of it; `nothing` has the shape and type of no frames."""
        self._join()
        if self._layouter is not None:
            self._put(self._layouter.flush(), laid_out=True)
        data = np.concatenate(self._pieces, axis=1) if self._pieces else nothing
        scales = np.concatenate(self._scales) if self._scales else None
        return Tokens(data, scales, tuple(gap for gap in self._gaps if gap < self._frames))

    def _join(self) -> None:
        if self._small:
            # Copied, also one alone: it may be a view into what a model's step gave, and keep it.
            whole = np.concatenate(self._small, axis=1)
            self._small = []
            self._put(whole)

    def _put(self, piece: np.ndarray, laid_out: bool = False) -> None:
        if self._layouter is not None and not laid_out:
            piece = self._layouter.push(piece)
        self._pieces.append(piece)
        self._frames += piece.shape[1]
        self._bytes += piece.nbytes
        if self._bytes > MAX_TOKEN_BYTES:
            raise InputError(
                f"its tokens have more than {MAX_TOKEN_BYTES >> 20} MiB, and are one row: cut it "
                "into segments (a manifest with offset and duration)"
            )


class ModelPass:
    """One item through one model, alone: as `Codec.encode` on all of it, to the last bit.

    Behind a gap, the model starts anew, as in any graph.

    Attributes:
        hungry, done, error: As of a LanePass: it takes all at once that is pushed.
    """

    hungry, done = True, True
    error: StreamencError | None = None

    def __init__(self, codec: Codec, ask: ModelAsk, layout: str) -> None:
        self._stream = codec.whole_stream(codebooks=ask.codebooks)
        self._gathered = Gathered(codec, ask, layout)

    def push(self, data: np.ndarray, anew: bool = False) -> None:
        """Takes some of the item, as the model takes it. Raises InputError for what it does not."""
        if anew and self._stream.pushed:
            self._gathered.add(self._stream.flush())
            self._gathered.break_off()
        self._gathered.add(self._stream.push(data))

    def end(self) -> None:
        """All of the item has been pushed."""

    def finish(self, nothing: np.ndarray) -> Tokens:
        """All that was made of it; `nothing` has the shape and type of no frames."""
        self._gathered.add(self._stream.flush())
        return self._gathered.tokens(nothing)
