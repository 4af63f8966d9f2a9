"""The columns of recordings: frames as rows of an Arrow table, and rows as frames.

    track            uint8          index within a mux; else 0
    seq              int64          counts the frames of a stream from 0
    pts, duration    int64          in ticks of the stream's time base (a mux: the track's)
    seconds          float64        `pts` in seconds
    discontinuity    bool           the frame does not follow on from the one before it
    arrived_unix_ns  int64          when its newest input entered the graph; 0 where unknown
    scale            float32        factor for the decoded waveform
    segment          int64          the source's number of the segment; -1 where it has none
    revised          bool           the frame replaces an earlier one of the same segment
    codes, values    nested lists   of the items, time first: a list for each codec frame, sample or
                                    image, of (codebooks,), (channels,), (3, height, width), ...

The last one is `codes` where the stream is of codes, else `values`; in a mux each track has one of
its own, `codes_0`, `values_1`, which is null in the rows of the others. Its items are of the
stream's own type. Arrow has no bfloat16: there the column is `bfloat16`, the upper two bytes of
float32 as uint16, or, where a file's format packs well, `values` in float32. Text is a column
`text` of strings, a segment in each row. `segment` and `revised` are there in version 3, which has
what comes in segments: text, and what was made of it.

Time comes first, so that the lists of several rows lie one behind the other as they are exploded;
and what has one length in all frames is a list of fixed size, which costs no offsets.

The schema's metadata has, under `streamenc`, {"version": 2, "info": ...} (or 3): see `infojson`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from streamenc.errors import FitError, InputError, MediaError
from streamenc.graph.frames import (
    Frame,
    StreamInfo,
    bfloat16_bits,
    bfloat16_numbers,
    frame_fault,
    round_to_bfloat16,
)
from streamenc.io.files.infojson import DTYPES, info_from_json, info_to_json

VERSION, SEGMENTED = 2, 3
METADATA_KEY = b"streamenc"
COMMON = (
    pa.field("track", pa.uint8(), nullable=False),
    pa.field("seq", pa.int64(), nullable=False),
    pa.field("pts", pa.int64(), nullable=False),
    pa.field("duration", pa.int64(), nullable=False),
    pa.field("seconds", pa.float64(), nullable=False),
    pa.field("discontinuity", pa.bool_(), nullable=False),
    pa.field("arrived_unix_ns", pa.int64(), nullable=False),
    pa.field("scale", pa.float32(), nullable=False),
)
OF_SEGMENTS = (
    pa.field("segment", pa.int64(), nullable=False),
    pa.field("revised", pa.bool_(), nullable=False),
)
# What a frame is made of again, beside its items.
READ = [0, 1, 2, 3, 5, 7]  # track, seq, pts, duration, discontinuity, scale
READ_OF_SEGMENTS = [8, 9]
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """A frame that waits to be written.

    frame            Its data have time first, and belong to nobody else.
    arrived_unix_ns  See the column.
    """

    frame: Frame
    arrived_unix_ns: int


class Columns:
    """The columns of one stream, both ways.

    bits  Whether bfloat16 stands as two bytes.

    Raises FitError for types that no table holds.
    """

    def __init__(self, info: StreamInfo, *, bits: bool = True) -> None:
        self.info = info
        self._tracks = info.tracks or (info,)
        for track in self._tracks:
            if (track.dtype not in DTYPES and track.kind != "text") or len(track.shape) < 2:
                raise FitError(
                    f"a recording holds {', '.join(DTYPES)} of two axes or more; got {track}"
                )
        self._fields = [
            _items_field(track, f"_{index}" if info.tracks else "", bits)
            for index, track in enumerate(self._tracks)
        ]
        self._common = (*COMMON, *OF_SEGMENTS) if info.segmented else COMMON
        version = SEGMENTED if info.segmented else VERSION
        described = json.dumps({"version": version, "info": info_to_json(info)})
        self.schema = pa.schema(
            [*self._common, *self._fields], metadata={METADATA_KEY: described.encode()}
        )
        self._bits = bits

    def row(self, frame: Frame, now_ns: int) -> Row:
        """`frame` as it will be written; `now_ns` is on its clock. Raises InputError."""
        if not 0 <= frame.track < len(self._tracks):
            raise InputError(f"got {frame!r} of track {frame.track}; the recording is {self.info}")
        track, data = self._tracks[frame.track], frame.data
        if not track.fits(data) or (data.shape[1] and not data.shape[0]):
            raise InputError(f"got {frame!r}; the recording is of {track}")
        if track.kind == "text" and data.shape != (1, 1):
            raise InputError(f"got {frame!r}; a recording of text has a segment in each frame")
        # A copy, so that nothing larger stays alive until it is written.
        items = data.swapaxes(0, 1).astype(data.dtype.newbyteorder("="), order="C", copy=True)
        arrived_unix_ns = 0
        if frame.arrived_ns:
            arrived_unix_ns = time.time_ns() - (now_ns - frame.arrived_ns)
        return Row(frame.with_(data=items), arrived_unix_ns)

    def batch(self, rows: Sequence[Row]) -> Any:
        """Rows as one pyarrow.RecordBatch."""
        frames = [row.frame for row in rows]
        bases = [self._tracks[frame.track].time_base for frame in frames]
        columns: list[Any] = [
            [frame.track for frame in frames],
            [frame.seq for frame in frames],
            [frame.pts for frame in frames],
            [frame.duration for frame in frames],
            [f.pts * b.numerator / b.denominator for f, b in zip(frames, bases, strict=True)],
            [frame.discontinuity for frame in frames],
            [row.arrived_unix_ns for row in rows],
            [frame.scale for frame in frames],
            [frame.segment for frame in frames],
            [frame.revised for frame in frames],
        ]
        made = [
            pa.array(np.array(column, field.type.to_pandas_dtype()))
            for column, field in zip(columns, self._common, strict=False)
        ]
        for index, field in enumerate(self._fields):
            pieces = [frame.data if frame.track == index else None for frame in frames]
            made.append(self._nested(pieces, field, self._tracks[index]))
        return pa.RecordBatch.from_arrays(made, schema=self.schema)

    def check(self, schema: Any, where: str) -> None:
        """Raises MediaError where a file's columns are others."""
        wanted = _plain(self.schema)
        try:
            got = _plain(schema)
        except UnicodeDecodeError as error:
            raise MediaError(f"{where} has damaged names of columns: {error}") from error
        if got != wanted:
            raise MediaError(
                f"{where} has the columns {', '.join(got)}; a recording of {self.info} has "
                f"{', '.join(wanted)}"
            )

    def frames(self, batch: Any, first_row: int, where: str, now_ns: int) -> Iterator[Frame]:
        """The frames in a pyarrow.RecordBatch whose columns are checked. Raises MediaError."""
        columns = batch.columns
        for column, field in zip(columns, self._common, strict=False):
            if column.null_count:
                raise MediaError(f"{where} has a missing value in column {field.name!r}")
        readers = [
            _Texts(column) if track.kind == "text" else _Nested(column, track, where)
            for column, track in zip(columns[len(self._common) :], self._tracks, strict=True)
        ]
        read = [*READ, *(READ_OF_SEGMENTS if self.info.segmented else ())]
        for index, row_values in enumerate(_rows([columns[position] for position in read])):
            track, seq, pts, duration, flag, scale, *marks = row_values
            row = f"row {first_row + index} of {where}"
            if track >= len(readers):
                raise MediaError(f"{row} is of track {track}; there are {len(readers)}")
            frame = Frame(
                data=self._data(readers[track].items(index, row), track, row),
                pts=pts,
                duration=duration,
                seq=seq,
                discontinuity=flag,
                arrived_ns=now_ns,
                scale=scale,
                track=track,
                segment=max(-1, marks[0]) if marks else -1,
                revised=bool(marks) and marks[1],
            )
            if fault := frame_fault(self._tracks[track], frame):
                raise MediaError(f"{row} is no frame: {fault}")
            yield frame

    def _data(self, items: Any, track: int, row: str) -> Any:
        info = self._tracks[track]
        if info.dtype == "bfloat16":
            items = bfloat16_numbers(items) if self._bits else round_to_bfloat16(items)
        if not info.fits(items):
            raise MediaError(f"{row} has shape {items.shape}; its track is {info}")
        return items

    def _nested(self, pieces: Sequence[Any], field: Any, track: StreamInfo) -> Any:
        """Arrays, or None, as one column of nested lists; of text, of strings."""
        if track.kind == "text":
            texts = [None if piece is None else str(piece[0, 0]) for piece in pieces]
            return pa.array(texts, field.type)
        types = levels(field.type)
        shapes = np.array([(0,) * len(types) if p is None else p.shape for p in pieces], np.int64)
        shapes = shapes.reshape(-1, len(types))
        flat = [p.reshape(-1) for p in pieces if p is not None]
        items = np.concatenate(flat) if flat else np.empty(0, track.array_dtype)
        if track.dtype == "bfloat16" and self._bits:
            items = bfloat16_bits(items)
        made = pa.array(items, types[-1].value_type)
        for axis in reversed(range(1, len(types))):
            if pa.types.is_fixed_size_list(types[axis]):
                made = pa.FixedSizeListArray.from_arrays(made, type=types[axis])
            else:
                made = pa.ListArray.from_arrays(_offsets(shapes, axis), made, type=types[axis])
        missing = pa.array([p is None for p in pieces], pa.bool_()) if field.nullable else None
        return pa.ListArray.from_arrays(_offsets(shapes, 0), made, type=field.type, mask=missing)


def _rows(columns: list[Any]) -> Iterator[tuple[Any, ...]]:
    """The values of each row; as Python's objects they take many times their size: not at once."""
    for start in range(0, len(columns[0]), ROWS_AT_ONCE):
        yield from zip(*(c.slice(start, ROWS_AT_ONCE).to_pylist() for c in columns), strict=True)


def _offsets(shapes: Any, axis: int) -> Any:
    """Where the lists on this axis begin: each has as many as its frame has there."""
    lengths = shapes[:, axis]
    if axis:
        lengths = lengths.repeat(shapes[:, :axis].prod(axis=1))
    offsets = np.zeros(len(lengths) + 1, np.int32)
    lengths.cumsum(out=offsets[1:])
    return pa.array(offsets)


def levels(nested: Any) -> list[Any]:
    """The types of a list, of the lists within, ..."""
    found = []
    while pa.types.is_list(nested) or pa.types.is_fixed_size_list(nested):
        found.append(nested)
        nested = nested.value_type
    return found


class _Nested:
    """A column of nested lists, read row by row as arrays, without a copy."""

    def __init__(self, column: Any, track: StreamInfo, where: str) -> None:
        self._valid = column.is_valid().to_pylist() if column.null_count else None
        self._rows = column.offsets.to_numpy()
        # Of each axis behind time: its offsets, or its size and where the first list lies.
        self._axes: list[tuple[Any, int, int]] = []
        inner = column.values
        for _ in track.shape[1:]:
            if inner.null_count:
                raise MediaError(f"{where} has a missing value within a frame")
            if pa.types.is_fixed_size_list(inner.type):
                self._axes.append((None, inner.type.list_size, inner.offset))
            else:
                self._axes.append((inner.offsets.to_numpy(), 0, 0))
            inner = inner.values
        if inner.null_count:
            raise MediaError(f"{where} has a missing value within a frame")
        self._items = inner.to_numpy()
        # Without lists on an axis, no list says how long they would be.
        self._known = [track.shape[0], *track.shape[2:]]

    def items(self, index: int, row: str) -> Any:
        """The array of a row, time on axis 1. Raises MediaError where it is none."""
        if self._valid is not None and not self._valid[index]:
            raise MediaError(f"{row} has a missing value")
        start, stop = int(self._rows[index]), int(self._rows[index + 1])
        shape = [stop - start]
        for (offsets, size, first), known in zip(self._axes, self._known, strict=True):
            if offsets is None:
                start, stop = (start + first) * size, (stop + first) * size
            else:
                lengths = np.diff(offsets[start : stop + 1])
                size = int(lengths[0]) if len(lengths) else known or 0
                if (lengths != size).any():
                    raise MediaError(f"{row} has lists of several lengths within a frame")
                start, stop = int(offsets[start]), int(offsets[stop])
            shape.append(size)
        if math.prod(shape) != stop - start:
            raise MediaError(f"{row} has {stop - start} items; its shape is {shape}")
        items = self._items[start:stop].reshape(shape).swapaxes(0, 1)
        # Of images a view is as good.
        return items if items.ndim > 2 else np.ascontiguousarray(items)


class _Texts:
    """A column of strings, read row by row as arrays."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def items(self, index: int, row: str) -> Any:
        """(1, 1). Raises MediaError where there is none."""
        text = self._column[index].as_py()
        if text is None:
            raise MediaError(f"{row} has a missing value")
        return np.array([[text]], np.str_)


def described(metadata: Any, where: str) -> tuple[int, StreamInfo]:
    """The version of a recording and what it holds, of its schema's metadata. Raises MediaError."""
    raw = (metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise MediaError(f"{where} is no recording of streamenc: its metadata does not say so")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MediaError(f"{where} has damaged metadata: {error}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version not in (1, VERSION, SEGMENTED):
        raise MediaError(
            f"{where} is a recording of version {version!r}; this program reads versions 1 to "
            f"{SEGMENTED}"
        )
    try:
        info = info_from_json(found.get("info"))
    except MediaError as error:
        raise MediaError(f"{where}: {error}") from error
    if info.segmented != (version == SEGMENTED):
        raise MediaError(f"{where} is a recording of version {version}, which is not of {info}")
    return version, info


def broken_note(reason: str) -> dict[bytes, bytes]:
    """Metadata that say why a stream ended before its end."""
    return {METADATA_KEY: json.dumps({"broken": reason}).encode()}


def broken_reason(metadata: Any) -> str:
    """What `broken_note` said; "" where nothing did."""
    if not metadata:
        return ""
    try:
        found = json.loads(metadata.get(METADATA_KEY, b"{}"))
    except (ValueError, RecursionError):
        return ""
    reason = found.get("broken") if isinstance(found, dict) else None
    return reason if isinstance(reason, str) else ""


def _items_field(track: StreamInfo, suffix: str, bits: bool) -> Any:
    if track.kind == "text":
        return pa.field("text" + suffix, pa.string(), nullable=bool(suffix))
    name, dtype = "codes" if track.kind == "codes" else "values", track.array_dtype
    if track.dtype == "bfloat16" and bits:
        name, dtype = "bfloat16", "uint16"
    made: Any = pa.from_numpy_dtype(np.dtype(dtype))
    for size in reversed((track.shape[0], *track.shape[2:])):
        # Codes may have fewer codebooks.
        varies = not size or (track.kind == "codes" and len(levels(made)) == len(track.shape) - 2)
        made = pa.list_(pa.field("item", made, nullable=False), -1 if varies else size)
    made = pa.list_(pa.field("item", made, nullable=False))
    return pa.field(name + suffix, made, nullable=bool(suffix))


def _plain(schema: Any) -> list[str]:
    """Names and types of columns, whatever the inner fields of lists are called."""
    found = []
    for field in schema:
        types = levels(field.type)
        sizes = [t.list_size if pa.types.is_fixed_size_list(t) else "?" for t in types]
        items = types[-1].value_type if types else field.type
        found.append(f"{field.name} {items}{''.join(f'[{size}]' for size in sizes)}")
    return found
