"""Recordings as Parquet, `.parquet`: the same rows and columns, packed, for tables and data sets.

Parquet has its directory at its end, so nothing of a file can be read before it is whole: it has
its name only then. What must outlive a crash is recorded to `.arrows`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamenc import options
from streamenc.errors import FitError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink, BlockingSource
from streamenc.io.files.output import WholeFile, output_error
from streamenc.io.files.tables.columns import (
    METADATA_KEY,
    Columns,
    Row,
    broken_note,
    broken_reason,
    described,
    levels,
)

log = logging.getLogger(__name__)

# A row group: readers take one, or some columns of one, at once.
MAX_ROWS = 65_536
MAX_GROUP_BYTES = 32 * 2**20
READ_ROWS = 256
BROKEN_KEY = METADATA_KEY + b"_end"


class ParquetSink(BlockingSink):
    """Records any stream, bit for bit, one row a frame. The file is there once the stream ended;
    until then it is called `NAME.parquet.RANDOM.part`, and is no Parquet.

    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(self, address: str, overwrite: str | bool = True) -> None:
        self.address = address
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: WholeFile | None = None
        self._writer: Any = None
        self._rows: list[Row] = []
        self._bytes = 0
        self._began = False

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises OutputError, and FitError for types that no table holds."""
        self._columns = Columns(info, bits=False)
        self._file = WholeFile(self.address, self.overwrite)
        # The bytes of floats pack well apart from each other, all others by how often they come.
        split, common = _leaves(self._columns.schema)
        try:
            self._writer = pq.ParquetWriter(
                self._file.file,
                self._columns.schema,
                compression="zstd",
                use_dictionary=common,
                use_byte_stream_split=split,
            )
        except OSError as error:
            raise self._failed(error) from error

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full, InputError where the frame does not fit."""
        if self._writer is None:
            raise OutputError(f"{self.address!r} is closed")
        self._rows.append(self._columns.row(frame, self.clock.now_ns()))
        self._began = True
        self._bytes += frame.data.nbytes
        if len(self._rows) >= MAX_ROWS or self._bytes >= MAX_GROUP_BYTES:
            self._flush()

    def close_blocking(self) -> None:
        if self._writer is None:
            return
        assert self._file is not None
        if self._rows:
            self._flush()
        if self.broken:
            note = broken_note(self.broken)
            self._writer.add_key_value_metadata({BROKEN_KEY: note[METADATA_KEY]})
        try:
            self._writer.close()
        except OSError as error:
            raise self._failed(error) from error
        file, self._file, self._writer = self._file, None, None
        if self.broken and not self._began:
            file.discard()  # so that what had the name before keeps it
        else:
            file.complete()

    def _flush(self) -> None:
        try:
            self._writer.write_batch(self._columns.batch(self._rows))
        except OSError as error:
            raise self._failed(error) from error
        self._rows = []
        self._bytes = 0

    def _failed(self, error: OSError) -> OutputError:
        """Lets go of the file."""
        file, self._file, self._writer = self._file, None, None
        if file is not None:
            file.discard()
        return output_error(self.address, error)


def _leaves(schema: Any) -> tuple[list[str], list[str]]:
    """Parquet's names of the columns of floats, and of the others."""
    split: list[str] = []
    common: list[str] = []
    for field in schema:
        types = levels(field.type)
        items = types[-1].value_type if types else field.type
        floats = types and items in (pa.float32(), pa.float64())
        (split if floats else common).append(field.name + ".list.element" * len(types))
    return split, common


class ParquetSource(BlockingSource):
    """Plays a recording in Parquet back: the frames as they were written.

    broken  What its end says of it. Known from the start.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.replayed = Path(address).is_file()
        self._file: Any = None
        self._rows: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file is no recording of a version that is known."""
        where = repr(self.address)
        try:
            self._file = pq.ParquetFile(self.address)
            schema = self._file.schema_arrow
        except FileNotFoundError as error:
            raise MediaError(f"cannot open {where}: No such file or directory") from error
        except (pa.ArrowException, OSError, MemoryError, UnicodeError) as error:
            raise MediaError(f"{where} cannot be read as Parquet: {error}") from error
        _, info = described(schema.metadata, where)
        try:
            columns = Columns(info, bits=False)
        except FitError as error:
            raise MediaError(f"{where}: {error}") from error
        columns.check(schema, where)
        note = (self._file.metadata.metadata or {}).get(BROKEN_KEY)
        self.broken = broken_reason({METADATA_KEY: note} if note else None)
        if self.broken:
            log.warning("%s: %s", self.address, self.broken)
        self._rows = self._read_rows(columns)
        return info

    def read(self) -> Frame | None:
        return next(self._rows, None)

    def close_blocking(self) -> None:
        self._rows = iter(())
        if self._file is not None:
            self._file.close()

    def _read_rows(self, columns: Columns) -> Iterator[Frame]:
        index = 0
        batches = self._file.iter_batches(READ_ROWS)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            except (pa.ArrowException, OSError, MemoryError) as error:
                raise MediaError(f"{self.address!r} is damaged: {error}") from error
            yield from columns.frames(batch, index, repr(self.address), self.clock.now_ns())
            index += batch.num_rows
