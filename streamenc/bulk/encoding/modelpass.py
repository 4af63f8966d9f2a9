"""ModelPass: one item through one model, from decoded frames to its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from streamenc.bulk.items import Tokens
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.codec import Codec
from streamenc.coding.chain import preparation
from streamenc.coding.defaults import conceal_ms
from streamenc.errors import InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.models.signal import Scaled, Signal, items
from streamenc.nodes.codes.interleaving import Layout, Layouter

MAX_TOKEN_BYTES = 2**30  # of an item: it is one row, and a row is written as one


def prepared(codec: Codec, job: TokenizeJob, info: StreamInfo) -> list[Transform]:
    """The nodes that bring decoded frames to what the model takes, opened. Raises FitError."""
    nodes = preparation(
        codec,
        hops=1,
        conceal_ms=conceal_ms(codec.spec),
        channel=job.channel or None,
        size=job.size or None,
        fit=job.fit or None,
    )
    nodes.pop("chunk", None)  # steps take what they need
    for node in nodes.values():
        info = node.open(info)
    return list(nodes.values())


class Gathered:
    """The output of one item, piece by piece."""

    def __init__(self, codec: Codec, ask: ModelAsk, layout: str) -> None:
        spec = codec.spec
        self._dtype = ask.dtype or spec.output.dtype
        self._pieces: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        self._gaps: list[int] = []
        self._frames = self._bytes = 0
        self._layouter = None
        if layout != "books" and spec.output.kind == "codes":
            books = ask.codebooks or spec.output.channels
            self._layouter = Layouter(Layout.of(layout), books, spec.codebook_size)

    def add(self, signal: Signal) -> None:
        """Raises InputError where there is too much of it for one row."""
        count = items(signal)
        if not count:
            return
        if isinstance(signal, Scaled):
            self._scales.append(signal.scale[0, 0].cpu().numpy())
            signal = signal.codes
        self._put(signal[0].cpu().numpy().astype(self._dtype, copy=False))

    def break_off(self) -> None:
        """The next piece does not follow on."""
        if self._layouter is not None:
            self._put(self._layouter.flush(), laid_out=True)
        if self._frames:
            self._gaps.append(self._frames)

    def tokens(self, nothing: np.ndarray) -> Tokens:
        """All of it; `nothing` has the shape and type of no frames."""
        if self._layouter is not None:
            self._put(self._layouter.flush(), laid_out=True)
        data = np.concatenate(self._pieces, axis=1) if self._pieces else nothing
        scales = np.concatenate(self._scales) if self._scales else None
        return Tokens(data, scales, tuple(gap for gap in self._gaps if gap < self._frames))

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
    """

    def __init__(self, codec: Codec, ask: ModelAsk, job: TokenizeJob, info: StreamInfo) -> None:
        self._nodes = prepared(codec, job, info)
        self._stream = codec.whole_stream(codebooks=ask.codebooks)
        self._gathered = Gathered(codec, ask, job.layout)

    def push(self, frame: Frame) -> None:
        """Raises InputError for samples that no model takes."""
        for made in through(self._nodes, [frame]):
            self._take(made)

    def finish(self, nothing: np.ndarray) -> Tokens:
        for made in flushed(self._nodes):
            self._take(made)
        self._gathered.add(self._stream.flush())
        return self._gathered.tokens(nothing)

    def _take(self, frame: Frame) -> None:
        if frame.discontinuity and self._stream.pushed:
            self._gathered.add(self._stream.flush())
            self._gathered.break_off()
        self._gathered.add(self._stream.push(frame.data))


def through(nodes: list[Transform], frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames through nodes, one after the other."""
    if not nodes:
        yield from frames
        return
    first, *rest = nodes
    for frame in frames:
        yield from through(rest, first.push(frame))


def flushed(nodes: list[Transform]) -> Iterator[Frame]:
    """What is left in nodes at the end of a stream."""
    for number, node in enumerate(nodes):
        yield from through(nodes[number + 1 :], node.flush())
