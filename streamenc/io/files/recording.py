"""Recordings: any stream with its timestamps, as an Arrow IPC stream, `.arrows`.

The file only ever grows, batch by batch, and can be read up to its last whole batch after a crash.
Anything that reads Arrow opens it. One row is one frame:

    track            uint8          index within a mux; else 0
    seq              int64          counts the frames of a stream from 0
    pts, duration    int64          in ticks of the stream's time base (a mux: the track's)
    discontinuity    bool           the frame does not follow on from the one before it
    arrived_unix_ns  int64          when its newest input entered the graph; 0 where unknown
    scale            float32        factor for the decoded waveform
    dtype            string         numpy's name of the type of the items, or "bfloat16": the upper
                                    two bytes of float32
    shape            list<int32>    (codebooks, frames), (3, images, height, width), ...
    data             binary         the items, C order, little-endian

so that with nothing but pyarrow

    for row in pa.ipc.open_stream("talk.arrows").read_all().to_pylist():
        codes = np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])

The schema's metadata has, under `streamenc`, {"version": 1, "info": ...}: see `infojson`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from streamenc import options
from streamenc.errors import FitError, InputError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo, bfloat16_bits, bfloat16_numbers
from streamenc.graph.node import BlockingSink, BlockingSource
from streamenc.io.files.infojson import DTYPES, MAX_AXES, info_from_json, info_to_json
from streamenc.io.files.output import open_output, output_error

log = logging.getLogger(__name__)

VERSION = 1
METADATA_KEY = b"streamenc"
SCHEMA = pa.schema(
    [
        pa.field("track", pa.uint8(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("duration", pa.int64(), nullable=False),
        pa.field("discontinuity", pa.bool_(), nullable=False),
        pa.field("arrived_unix_ns", pa.int64(), nullable=False),
        pa.field("scale", pa.float32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)
MAX_ROWS = 1024
MAX_BATCH_BYTES = 2**20
# What a reader takes in at once: files from elsewhere may have larger batches than ours.
MAX_READ_BYTES = 256 * 2**20


class RecordingSink(BlockingSink):
    """Records any stream, bit for bit.

    flush_ms   Frames are written together for so long; it bounds what a crash can lose, and each
               batch costs some 700 bytes.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(
        self, address: str, flush_ms: str | float = 200, overwrite: str | bool = True
    ) -> None:
        self.address = address
        self.flush_seconds = options.number("flush_ms", flush_ms, 0, 60_000) / 1000
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._first_seconds = 0.0

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises OutputError, and FitError for types that no recording holds."""
        for track in info.tracks or (info,):
            if track.dtype not in DTYPES:
                raise FitError(f"a recording holds {', '.join(DTYPES)}; got {track}")
        self._info = info
        described = json.dumps({"version": VERSION, "info": info_to_json(info)})
        schema = SCHEMA.with_metadata({METADATA_KEY: described.encode()})
        self._file = open_output(self.address, self.overwrite)
        try:
            self._writer = pa.ipc.new_stream(self._file, schema)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full, InputError where the frame does not fit."""
        if self._writer is None:
            raise OutputError(f"{self.address!r} is closed")
        now_seconds = time.monotonic()
        if not self._rows:
            self._first_seconds = now_seconds
        self._rows.append(self._row(frame))
        self._bytes += frame.data.nbytes
        if (
            now_seconds - self._first_seconds >= self.flush_seconds
            or len(self._rows) >= MAX_ROWS
            or self._bytes >= MAX_BATCH_BYTES
        ):
            self._flush()

    def close_blocking(self) -> None:
        if self._writer is None:
            return
        assert self._file is not None
        self._flush()
        try:
            self._writer.close()
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _row(self, frame: Frame) -> dict[str, Any]:
        track = self._info.track(frame.track)
        if frame.data.dtype.name != track.array_dtype:
            raise InputError(f"got {frame!r}; the recording {self.address!r} is of {track}")
        data = bfloat16_bits(frame.data) if track.dtype == "bfloat16" else frame.data
        arrived_unix_ns = 0
        if frame.arrived_ns:
            arrived_unix_ns = time.time_ns() - (self.clock.now_ns() - frame.arrived_ns)
        return {
            "track": frame.track,
            "seq": frame.seq,
            "pts": frame.pts,
            "duration": frame.duration,
            "discontinuity": frame.discontinuity,
            "arrived_unix_ns": arrived_unix_ns,
            "scale": frame.scale,
            "dtype": track.dtype,
            "shape": list(frame.data.shape),
            "data": data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes(),
        }

    def _flush(self) -> None:
        if not self._rows:
            return
        assert self._file is not None
        try:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA))
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error
        self._rows.clear()
        self._bytes = 0

    def _abandon(self) -> None:
        """Lets go of the file as it stands."""
        file, self._file, self._writer = self._file, None, None
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("%s: closing failed too", self.address)


class RecordingSource(BlockingSource):
    """Plays a recording back: the frames as they were written, `arrived_ns` apart.

    broken            Set where the file has no proper end (a crash): its whole batches were read.
                      Known once the last frame was.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.replayed = Path(address).is_file()
        self._file: _BoundedFile | None = None
        self._rows: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file is no recording of this version."""
        try:
            self._file = _BoundedFile(open(self.address, "rb"))
        except OSError as error:
            raise MediaError(f"cannot open {self.address!r}: {error.strerror}") from error
        try:
            reader = pa.ipc.open_stream(pa.PythonFile(self._file, mode="r"))
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise MediaError(f"{self.address!r} is not an Arrow IPC stream: {error}") from error
        metadata = reader.schema.metadata or {}
        if METADATA_KEY not in metadata or reader.schema.remove_metadata() != SCHEMA:
            raise MediaError(f"{self.address!r} is Arrow, but not a recording of streamenc")
        try:
            described = json.loads(metadata[METADATA_KEY])
        except (ValueError, RecursionError) as error:
            raise MediaError(f"{self.address!r} has damaged metadata: {error}") from error
        version = described.get("version") if isinstance(described, dict) else None
        if version != VERSION:
            raise MediaError(
                f"{self.address!r} is a recording of version {version!r}; this program reads "
                f"version {VERSION}"
            )
        self._info = info_from_json(described.get("info"))
        self._rows = self._read_rows(reader)
        return self._info

    def read(self) -> Frame | None:
        return next(self._rows, None)

    def close_blocking(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read_rows(self, reader: Any) -> Iterator[Frame]:
        index = 0
        for batch in self._batches(reader):
            # One row at a time: a batch as Python objects would be many times its size.
            for row in range(batch.num_rows):
                values = {name: batch.column(name)[row].as_py() for name in SCHEMA.names}
                yield self._frame(index, values)
                index += 1
        assert self._file is not None
        if self._file.ended_early:
            self.broken = (
                "the recording was cut short (a crash, or still being written); it ends after "
                f"{index} frames"
            )
            log.warning("%s: %s", self.address, self.broken)

    def _batches(self, reader: Any) -> Iterator[Any]:
        while True:
            try:
                batch = reader.read_next_batch()
                batch.validate(full=True)
            except StopIteration:
                return
            except (pa.ArrowException, OSError, MemoryError) as error:
                if self._file is not None and self._file.ended_early:
                    return
                raise MediaError(f"{self.address!r} is damaged: {error}") from error
            yield batch

    def _frame(self, index: int, row: dict[str, Any]) -> Frame:
        shape, dtype, raw = row["shape"], row["dtype"], row["data"]
        where = f"row {index} of {self.address!r}"
        if any(value is None for value in row.values()) or None in shape:
            raise MediaError(f"{where} has a missing value")
        tracks = self._info.tracks or (self._info,)
        if row["track"] >= len(tracks):
            raise MediaError(f"{where} is of track {row['track']}; there are {len(tracks)}")
        if dtype not in DTYPES or dtype != tracks[row["track"]].dtype:
            raise MediaError(f"{where} is {dtype!r:.40}; its track is {tracks[row['track']]}")
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
        fits = 1 <= len(shape) <= MAX_AXES and min(shape) >= 0
        if not fits or math.prod(shape) * kind.itemsize != len(raw):
            raise MediaError(f"{where} has {len(raw)} bytes; its shape is {shape} of {dtype}")
        if row["duration"] < 0 or row["seq"] < 0:
            raise MediaError(f"{where} has duration {row['duration']}, seq {row['seq']}")
        items = np.frombuffer(raw, kind).reshape(shape)
        data = bfloat16_numbers(items) if dtype == "bfloat16" else items
        if not tracks[row["track"]].fits(data):
            raise MediaError(f"{where} has shape {shape}; its track is {tracks[row['track']]}")
        return Frame(
            data=data,
            pts=row["pts"],
            duration=row["duration"],
            seq=row["seq"],
            discontinuity=row["discontinuity"],
            arrived_ns=self.clock.now_ns(),
            scale=row["scale"],
            track=row["track"],
        )


class _BoundedFile:
    """A file that never hands out, nor allocates, more than it holds: a damaged length field may
    ask for terabytes.

    ended_early  More was wanted than there was.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = file.seek(0, 2)
        file.seek(0)
        self.ended_early = False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> bytes:
        if size > self._left:
            self.ended_early = True
            size = self._left
        if size > MAX_READ_BYTES:
            raise MediaError(f"a batch of {size} bytes; at most {MAX_READ_BYTES} are read at once")
        got = self._file.read(size)
        self._left -= len(got)
        return got

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
