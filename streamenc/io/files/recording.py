"""Recordings: any stream with its timestamps, as an Arrow IPC stream, `.arrows`.

The file only ever grows, batch by batch, and can be read up to its last whole batch after a crash.
Anything that reads Arrow's streams opens it. One row is one frame, whose last column holds the
items as lists (`tables.columns` has all):

    pl.read_ipc_stream("talk.arrows")["codes"]

Where the stream ended before its end, a last batch without rows says why, in its metadata.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from streamenc import options
from streamenc.errors import FitError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink, BlockingSource
from streamenc.io.files.output import open_output, output_error
from streamenc.io.files.tables.arrowmessages import ArrowStream
from streamenc.io.files.tables.columns import (
    Columns,
    Row,
    broken_note,
    broken_reason,
    described,
)
from streamenc.io.files.tables.firstversion import FirstColumns

log = logging.getLogger(__name__)

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
        self._rows: list[Row] = []
        self._bytes = 0
        self._first_seconds = 0.0

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises OutputError, and FitError for types that no recording holds."""
        self._columns = Columns(info)
        self._file = self._opened()
        try:
            self._writer = pa.ipc.new_stream(self._file, self._columns.schema)
            self._file.flush()
            # Arrow imports pandas, where it is installed, with its first list of Python's objects:
            # most of a second, which no live frame is to wait for.
            self._columns.batch([])
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
        self._rows.append(self._columns.row(frame, self.clock.now_ns()))
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
        if self._rows:
            self._flush()
        if self.broken:
            self._write([], broken_note(self.broken))
        try:
            self._writer.close()
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _opened(self) -> BinaryIO:
        """Where it is written, from front to back. Raises OutputError."""
        return open_output(self.address, self.overwrite)

    def _flush(self) -> None:
        self._write(self._rows)
        self._rows = []
        self._bytes = 0

    def _write(self, rows: list[Row], note: dict[bytes, bytes] | None = None) -> None:
        assert self._file is not None
        try:
            self._writer.write_batch(self._columns.batch(rows), custom_metadata=note)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

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

    broken            Set where the file has no proper end (a crash): its whole batches were read;
                      or where its end says that the stream was broken. Known once the last frame
                      was read.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.replayed = Path(address).is_file()
        self._file: _BoundedFile | None = None
        self._rows: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file is no recording of a version that is known."""
        try:
            self._file = _BoundedFile(open(self.address, "rb"))
        except OSError as error:
            raise MediaError(f"cannot open {self.address!r}: {error.strerror}") from error
        try:
            reader = ArrowStream(self._file)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise MediaError(f"{self.address!r} is not an Arrow IPC stream: {error}") from error
        where = repr(self.address)
        version, info = described(reader.schema.metadata, where)
        try:
            columns = FirstColumns(info) if version == 1 else Columns(info)
        except FitError as error:
            raise MediaError(f"{where}: {error}") from error
        columns.check(reader.schema, where)
        self._rows = self._read_rows(reader, columns)
        return info

    def read(self) -> Frame | None:
        return next(self._rows, None)

    def close_blocking(self) -> None:
        self._rows = iter(())
        if self._file is not None:
            self._file.close()

    def _read_rows(self, reader: ArrowStream, columns: Columns | FirstColumns) -> Iterator[Frame]:
        index = 0
        for batch in self._batches(reader):
            yield from columns.frames(batch, index, repr(self.address), self.clock.now_ns())
            index += batch.num_rows
        assert self._file is not None
        if self._file.ended_early:
            self.broken = (
                "the recording was cut short (a crash, or still being written); it ends after "
                f"{index} frames"
            )

    def _batches(self, reader: ArrowStream) -> Iterator[Any]:
        batches = reader.batches()
        while True:
            try:
                batch, note = next(batches)
                batch.validate(full=True)
            except StopIteration:
                return
            except (pa.ArrowException, OSError, MemoryError) as error:
                if self._file is not None and self._file.ended_early:
                    return
                raise MediaError(f"{self.address!r} is damaged: {error}") from error
            self.broken = self.broken or broken_reason(note)
            yield batch


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
