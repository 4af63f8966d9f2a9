"""Whole streams as arrays: the data one behind the other, the time of each item, and the gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamenc.errors import InputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One stream as arrays.

    Attributes:
        info: What the stream is: its kind, model, rate, ...
        data: (codebooks, items), (bins, items), (channels, samples), (3, images, height, width),
            ...: all frames, one behind the other on axis 1; dtype as `info.array_dtype`.
        times: When each item begins, (items,), float64 seconds on the source's clock.
        gaps: Which items do not follow on from the one before them, as something was lost or
            skipped in between: indices on axis 1 of `data`, ascending, int64.
        scales: (items,), float32, the volume that EnCodec 48 kHz keeps apart; None where all are 1.
        segments: (items,), int64, of text and what was made of it the number of each segment, -1
            where it has none; None of all else.
        revised: (items,), bool, which of them replace an earlier one of the same segment; None of
            all else.
    """

    info: StreamInfo
    data: Array
    times: Array
    gaps: Array
    scales: Array | None = None
    segments: Array | None = None
    revised: Array | None = None

    @property
    def latest(self) -> Array:
        """(items,), bool: which items no later one replaces."""
        kept = np.ones(self.data.shape[1], np.bool_)
        if self.segments is None or self.revised is None:
            return kept
        last: dict[int, int] = {}
        for index, (segment, anew) in enumerate(zip(self.segments, self.revised, strict=True)):
            if anew and segment in last:
                kept[last[segment]] = False
            last[segment] = index
        return kept

    def unbroken(self) -> Iterator[Array]:
        """`data` in pieces without a gap within."""
        pieces = np.split(self.data, self.gaps, axis=1)
        return (piece for piece in pieces if piece.shape[1])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.data.shape))
        model = f" of {self.info.model}" if self.info.model else ""
        return (
            f"Track({self.info.kind}{model}, {shape} {self.data.dtype.name}, {len(self.gaps)} gaps)"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A whole file as arrays. Of the one stream that most files hold, the arrays are here too.

    Attributes:
        tracks: The streams; more than one where several are interleaved, such as a film's sound
            and images.
        broken: Why the file is known not to be the whole (a crash, a connection that was lost), in
            words; "" where it is.
    """

    tracks: tuple[Track, ...]
    broken: str = ""

    @property
    def info(self) -> StreamInfo:
        """Raises UsageError, as all of these do, where there are several tracks."""
        return self._only.info

    @property
    def data(self) -> Array:
        return self._only.data

    @property
    def times(self) -> Array:
        return self._only.times

    @property
    def gaps(self) -> Array:
        return self._only.gaps

    @property
    def scales(self) -> Array | None:
        return self._only.scales

    @property
    def segments(self) -> Array | None:
        return self._only.segments

    @property
    def revised(self) -> Array | None:
        return self._only.revised

    @property
    def latest(self) -> Array:
        return self._only.latest

    @property
    def _only(self) -> Track:
        if len(self.tracks) != 1:
            raise UsageError(
                f"this holds {len(self.tracks)} tracks ({', '.join(map(repr, self.tracks))}); "
                "take one of them: .tracks[0]"
            )
        return self.tracks[0]

    def __repr__(self) -> str:
        broken = f", broken: {self.broken}" if self.broken else ""
        return f"Recording({', '.join(map(repr, self.tracks))}{broken})"


class Stack:
    """Gathers the frames of a stream, to be stacked at its end.

    codebooks  Of codes, keeps only the first so many.
    """

    def __init__(self, info: StreamInfo, codebooks: int | None = None) -> None:
        self._tracks = [_Pieces(track, codebooks) for track in info.tracks or (info,)]

    @property
    def size(self) -> int:
        """Bytes that what was gathered so far takes as arrays."""
        return sum(track.size for track in self._tracks)

    def add(self, frame: Frame) -> None:
        """Raises InputError where the frame has too few codebooks, or another number of them."""
        self._tracks[frame.track].add(frame)

    def recording(self, broken: str = "") -> Recording:
        return Recording(tuple(track.stacked() for track in self._tracks), broken)


class _Pieces:
    def __init__(self, info: StreamInfo, codebooks: int | None) -> None:
        self._info = info
        self._codebooks = codebooks if info.kind == "codes" else None
        self._data: list[Array] = []
        self._times: list[Array] = []
        self._scales: list[Array] = []
        self._gaps: list[int] = []
        self._segments: list[tuple[int, bool]] = []
        self._items = self._bytes = self._longest = 0
        self._next_seq: int | None = None

    def add(self, frame: Frame) -> None:
        missed = self._next_seq is not None and frame.seq > self._next_seq
        self._next_seq = frame.seq + 1
        if (frame.discontinuity or missed) and self._items not in self._gaps[-1:]:
            self._gaps.append(self._items)
        count = frame.data.shape[1]
        if not count:
            return
        self._data.append(self._wanted(frame))
        self._times.append(times_of(self._info, frame))
        self._scales.append(np.full(count, frame.scale, np.float32))
        self._items += count
        if self._info.segmented:
            self._segments += [(frame.segment, frame.revised)] * count
        self._bytes += frame.data.nbytes
        self._longest = max(self._longest, frame.data.dtype.itemsize)

    @property
    def size(self) -> int:
        """Of text, each has the room of the longest."""
        return self._items * self._longest if self._info.kind == "text" else self._bytes

    def stacked(self) -> Track:
        info = self._info
        if self._data:
            data, times = np.concatenate(self._data, axis=1), np.concatenate(self._times)
            scales = np.concatenate(self._scales)
        else:
            shape = [size or 0 for size in info.shape]
            shape[1] = 0
            data, times, scales = np.empty(shape, info.array_dtype), np.empty(0), np.ones(0)
        # A gap at the very end has no item behind it.
        gaps = np.array([gap for gap in self._gaps if gap < self._items], np.int64)
        segments = revised = None
        if info.segmented:
            segments = np.array([number for number, _ in self._segments], np.int64)
            revised = np.array([anew for _, anew in self._segments], np.bool_)
        volumes = None if (scales == 1).all() else scales
        return Track(info, data, times, gaps, volumes, segments, revised)

    def _wanted(self, frame: Frame) -> Array:
        data = frame.data[: self._codebooks]
        wanted = self._codebooks or (self._data[0].shape[0] if self._data else data.shape[0])
        if data.shape[0] != wanted:
            seconds = float(frame.pts * self._info.time_base)
            raise InputError(
                f"the frame at {seconds:.3f} s has {frame.data.shape[0]} codebooks, and {wanted} "
                "were wanted, as many as in all others of one array: say codebooks=N, the first of "
                "which to take from all frames"
            )
        return data.astype(self._info.array_dtype, order="C", copy=True)


def times_of(info: StreamInfo, frame: Frame) -> Array:
    """When each item of a frame begins, (items,), float64 seconds.

    Sound, and what was encoded of it, comes at the stream's rate; images share out their frame's
    duration.
    """
    base, count = info.time_base, frame.data.shape[1]
    start = frame.pts * base.numerator / base.denominator
    if info.kind == "video" or not info.rate:
        step = frame.duration * base / max(count, 1)
    else:
        step = 1 / info.rate
    times: Array = start + np.arange(count) * step.numerator / step.denominator
    return times
