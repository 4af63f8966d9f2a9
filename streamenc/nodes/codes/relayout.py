"""Layouts of codes in a graph: a node that lays them out, and one that takes that back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from streamenc.errors import FitError, InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.nodes.codes.interleaving import (
    MAX_DELAY,
    Layout,
    Layouter,
    Undelayer,
    Unflattener,
    checked_delays,
    pads_before,
    token_dtype,
)
from streamenc.nodes.speech.kept import Kept, from_bytes

Codes = np.ndarray[Any, Any]


class _Kept(Kept):
    """The state of a ToLayout."""

    begun: bool
    end: int
    arrived_ns: int
    seq: int
    layouter: bytes


class ToLayout(Transform):
    """Codes -> tokens as a language model reads them; see streamenc.nodes.codes.interleaving.

    Frames keep their times. The tokens of a flat frame share its duration out evenly, in order: all
    are known when the frame is, so their times order them and say no more. A column of `delay` has
    the time of the frame whose first code it has; the last ones, behind the end of the stream, have
    its end for a time, and no duration.

    Args:
        layout: "books", "flat", "delay", or "delay:0,1,1,1" with the delay of each codebook.
        codebooks: Of each frame; None for as many as may come.

    Raises:
        UsageError: Where the layout is none, or its delays are of another number of codebooks.
    """

    def __init__(self, layout: str, codebooks: int | None = None) -> None:
        self.layout = Layout.of(layout)
        self._codebooks = codebooks
        if codebooks is not None and self.layout.delays:
            checked_delays(self.layout.delays, codebooks)
        self._begun = False
        self._end = self._arrived_ns = self._seq = 0  # of the last frame: when it ended

    def open(self, info: StreamInfo) -> StreamInfo:
        """Raises FitError for what are no codes of sound."""
        if info.kind != "codes" or len(info.shape) != 2 or not info.codebook_size or not info.rate:
            raise FitError(
                f"layouts are of codes of sound, (codebooks, frames); got {info}: leave `layout` "
                "out"
            )
        codebooks = self._codebooks or info.shape[0] or 1
        self._layouter = Layouter(self.layout, codebooks, info.codebook_size)
        if self.layout.name == "books":
            return info
        return replace(
            info,
            rate=info.rate * self._layouter.per_frame,
            shape=(self._layouter.rows, None),
            dtype=token_dtype(self._layouter.entries).name,
            codebook_size=self._layouter.entries,
        )

    def push(self, frame: Frame) -> Iterable[Frame]:
        if self.layout.name == "delay" and frame.scale != 1:
            raise InputError(
                "these codes have a scale for each segment, and columns of `delay` are of several: "
                "take layout=flat"
            )
        out = list(self.flush()) if frame.discontinuity else []
        tokens = self._layouter.push(frame.data)
        self._begun, self._end = True, frame.pts + frame.duration
        self._arrived_ns = frame.arrived_ns
        self._seq += 1
        return [*out, frame.with_(data=tokens, seq=self._seq - 1)]

    def flush(self) -> Iterable[Frame]:
        begun, self._begun = self._begun, False
        tail = self._layouter.flush()
        if not begun or not tail.shape[1]:
            return ()
        self._seq += 1
        return (Frame(tail, self._end, 0, self._seq - 1, arrived_ns=self._arrived_ns),)

    def state(self) -> bytes:
        """All that it remembers of the stream, for `restore` of one with the same arguments."""
        layouter = self._layouter.state()
        return _Kept(self._begun, self._end, self._arrived_ns, self._seq, layouter).to_bytes()

    def restore(self, state: bytes) -> None:
        """Goes on where the node that gave `state` stood; behind `open`.

        Raises:
            SnapshotError: Where it is of another layout, or no state at all.
        """
        kept = from_bytes(state, _Kept, "a layout's node")
        self._layouter.restore(kept.layouter)
        self._begun, self._end = kept.begun, kept.end
        self._arrived_ns, self._seq = kept.arrived_ns, kept.seq


class FromLayout(Transform):
    """Tokens of a layout -> codes, (codebooks, frames), the frames that went in there.

    Args:
        layout: As of ToLayout; "" reads it off the stream: from the number of entries, and the
            delays from the pads at its beginning, which one who joins later has not seen.
        codebook_size: Entries of each codebook, of the model that made the codes.

    Attributes:
        remarks: Of frames that were not whole when the stream ended.

    Raises:
        UsageError: Where the layout is none.
    """

    def __init__(self, layout: str, codebook_size: int) -> None:
        self._wanted = Layout.of(layout) if layout else None
        self._size = codebook_size
        self.remarks: list[str] = []
        self._lost = self._seq = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        """Raises FitError for what are no tokens of such a layout."""
        name = self._name(info)
        self._columns: _Flat | _Delayed | None = None
        if name == "books":
            return info
        if name == "flat":
            books = info.codebook_size // self._size
            self._columns, rate = _Flat(books, self._size), info.rate / books
        else:
            books, rate = info.shape[0] or 1, info.rate
            told = self._wanted is not None
            delays = self._wanted.delays_of(books) if self._wanted is not None and told else None
            self._columns = _Delayed(books, self._size, delays)
        return replace(
            info,
            rate=rate,
            shape=(books, None),
            dtype=token_dtype(self._size).name,
            codebook_size=self._size,
        )

    def push(self, frame: Frame) -> Iterable[Frame]:
        if self._columns is None:
            return (frame,)
        out = list(self.flush()) if frame.discontinuity else []
        return [*out, *map(self._numbered, self._columns.push(frame))]

    def flush(self) -> Iterable[Frame]:
        if self._columns is None:
            return ()
        out = [self._numbered(frame) for frame in self._columns.flush()]
        if self._columns.lost:
            self.remarks[:] = [
                f"{self._columns.lost} frames were left out, as the tokens of some of their "
                "codebooks were missing where the stream ended or was interrupted"
            ]
        return out

    def _numbered(self, frame: Frame) -> Frame:
        self._seq += 1
        return frame.with_(seq=self._seq - 1)

    def _name(self, info: StreamInfo) -> str:
        size, entries = self._size, info.codebook_size
        plain = info.kind == "codes" and len(info.shape) == 2 and size > 0
        flat = plain and info.shape[0] == 1 and entries > 0 and entries % size == 0
        delayed = plain and info.shape[0] is not None and entries == size + 1
        if self._wanted is None:
            return "flat" if flat and entries > size else "delay" if delayed else "books"
        name = self._wanted.name
        if (name == "flat" and not flat) or (name == "delay" and not delayed):
            wanted = "1 row of a multiple of" if name == "flat" else "a row for each codebook and"
            more = "" if name == "flat" else " and a pad"
            raise FitError(
                f"layout={name} has {wanted} {size} entries{more}; got {info}, of {entries} "
                "entries: leave `layout` out where the stream says it"
            )
        return name


class _Flat:
    """Frames of flat tokens, cut anywhere -> frames of codes.

    lost  Frames that were not whole.
    """

    def __init__(self, codebooks: int, codebook_size: int) -> None:
        self.lost = 0
        self._unflattener = Unflattener(codebooks, codebook_size)
        self._begun: Frame | None = None  # with the first token that waits, from its time on

    def push(self, frame: Frame) -> list[Frame]:
        begun = self._begun if self._begun is not None else frame
        codes = self._unflattener.push(frame.data)
        waiting, count = self._unflattener.waiting, frame.data.shape[1]
        self._begun = begun if waiting else None
        if not codes.shape[1]:
            return []
        end = frame.pts + frame.duration * (count - waiting) // count
        if waiting:
            self._begun = frame.with_(pts=end, discontinuity=False)
        flag, duration = begun.discontinuity, end - begun.pts
        return [frame.with_(data=codes, pts=begun.pts, duration=duration, discontinuity=flag)]

    def flush(self) -> list[Frame]:
        self.lost += self._unflattener.flush() > 0
        self._begun = None
        return []


class _Delayed:
    """Frames of delayed tokens -> the same frames with codes.

    delays  Of each codebook; None to read them off the pads.
    lost    Frames that were not whole.
    """

    def __init__(self, codebooks: int, codebook_size: int, delays: tuple[int, ...] | None) -> None:
        self.lost = 0
        self._size, self._delays = codebook_size, delays
        self._undelayer: Undelayer | None = None
        self._frames: deque[Frame] = deque()  # whose codes are not all there
        self._codes: Codes = np.zeros((codebooks, 0), token_dtype(codebook_size))  # theirs
        self._unread: Codes = np.zeros((codebooks, 0), token_dtype(codebook_size + 1))

    def push(self, frame: Frame) -> list[Frame]:
        tokens = frame.data
        if self._undelayer is None:
            if self._delays is None:
                self._look(frame)
                tokens = self._unread
            if self._delays is not None:
                # What follows on an interruption may be the middle of what was sent.
                start = frame.seq == 0 or self._unread.shape[1] > 0
                self._undelayer = Undelayer(self._delays, self._size, from_start=start)
        self._frames.append(frame)
        if self._undelayer is None:
            return []
        self._unread = self._unread[:, :0]
        self._codes = np.concatenate((self._codes, self._undelayer.push(tokens)), axis=1)
        out = []
        while self._frames and self._frames[0].data.shape[1] <= self._codes.shape[1]:
            first = self._frames.popleft()
            codes, self._codes = np.split(self._codes, [first.data.shape[1]], axis=1)
            out.append(first.with_(data=codes, arrived_ns=frame.arrived_ns))
        return out

    def flush(self) -> list[Frame]:
        out = []
        if whole := self._codes.shape[1]:
            first = self._frames[0]
            duration = first.duration * whole // first.data.shape[1]
            out.append(first.with_(data=self._codes, duration=duration))
        if self._undelayer is not None:
            self.lost += self._undelayer.flush()
        self.lost += int((self._unread < self._size).sum(axis=1).max(initial=0))
        self._undelayer = None
        self._frames.clear()
        self._codes, self._unread = self._codes[:, :0], self._unread[:, :0]
        return out

    def _look(self, frame: Frame) -> None:
        """Sets the delays, once each codebook has shown its first code."""
        if frame.seq and not self._unread.shape[1]:
            raise InputError(
                "this stream of delayed tokens was joined in its middle, and its delays are only "
                "seen at its beginning: say layout=delay, or layout=delay:0,1,1,1 with the delay "
                "of each codebook"
            )
        self._unread = np.concatenate((self._unread, frame.data), axis=1)
        columns = self._unread.shape[1]
        found = pads_before(self._unread, self._size)
        if max(found) < columns:
            self._delays = checked_delays(found, len(found))
        elif columns > MAX_DELAY:
            raise InputError(f"some codebook has no code in the first {columns} columns, but pads")
