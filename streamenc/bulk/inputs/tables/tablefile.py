"""Files of tables, read a few rows at a time: Parquet, and Arrow's streams and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.errors import MediaError

BATCH_BYTES = 4 * 2**20  # of rows that are read at a time, about
MOST_ROWS = 1024
BUFFER_BYTES = 1 << 20
ENDINGS = (".parquet", ".pq", ".arrow")
FILE_MAGIC = b"ARROW1"


class DamagedTable(MediaError):
    """A file is no table, or not whole."""


class TableFile(ABC):
    """One file.

    Attributes:
        schema: Its columns.
        rows: How many it has.
        groups: After how many rows each of the pieces ends that it is stored in.
    """

    schema: pa.Schema
    rows: int
    groups: list[int]

    @abstractmethod
    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows from `start` on, a few at a time. Raises DamagedTable, and MediaError of a store."""


@contextmanager
def table_file(address: str) -> Iterator[TableFile]:
    """A file by its first bytes. Raises DamagedTable, and MediaError where it cannot be opened."""
    with filesystem.opened(address) as raw:
        source = _Noted(raw, address)
        with source.words():
            magic = source.read(len(FILE_MAGIC))
            source.seek(0)
        made: TableFile
        with source.words():
            if magic.startswith(b"PAR1"):
                made = ParquetTable(source)
            else:
                made = ArrowTable(source, magic == FILE_MAGIC)
        yield made


class ParquetTable(TableFile):
    """Reads row groups piece by piece, so that memory follows what is asked of them at once."""

    def __init__(self, source: _Noted) -> None:
        self._source = source
        self._file = pq.ParquetFile(
            source.local or pa.PythonFile(source, "r"), pre_buffer=False, buffer_size=BUFFER_BYTES
        )
        self.schema = self._file.schema_arrow
        self.rows, self.groups = 0, []
        self._metadata = self._file.metadata
        for number in range(self._metadata.num_row_groups):
            self.rows += self._metadata.row_group(number).num_rows
            self.groups.append(self.rows)

    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        first = 0
        for number, last in enumerate(self.groups):
            if first < stop and start < last:
                yield from self._group(number, first, max(start, first), min(stop, last), columns)
            first = last

    def _group(
        self, number: int, first: int, start: int, stop: int, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        group = self._metadata.row_group(number)
        each = max(1, group.total_byte_size // max(1, group.num_rows))
        batches = self._file.iter_batches(
            batch_size=int(min(MOST_ROWS, max(1, BATCH_BYTES // each))),
            row_groups=[number],
            columns=list(columns),
            use_threads=False,
        )
        at = first
        while at < stop:
            with self._source.words():
                batch = next(batches, None)
            if batch is None:
                raise DamagedTable(f"{self._source.shown} has fewer rows than it says")
            yield from _within(batch, at, start, stop)
            at += batch.num_rows


class ArrowTable(TableFile):
    """What `datasets` saves to a disk: record batches, as a stream or as a file."""

    def __init__(self, source: _Noted, is_file: bool) -> None:
        self._source, self._is_file = source, is_file
        self.schema = self._reader().schema
        self.rows, self.groups = 0, []
        for batch in self._batches():
            self.rows += batch.num_rows
            self.groups.append(self.rows)

    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        at = 0
        for batch in self._batches():
            if at >= stop:
                return
            for some in _within(batch, at, start, stop):
                each = max(1, some.nbytes // max(1, some.num_rows))
                step = int(min(MOST_ROWS, max(1, BATCH_BYTES // each)))
                for begin in range(0, some.num_rows, step):
                    few = some.slice(begin, step).select(list(columns))
                    with self._source.words():
                        few.validate(full=True)  # what is wrong in it would end the process
                    yield few
            at += batch.num_rows

    def _reader(self) -> Any:
        self._source.seek(0)
        opened = pa.ipc.open_file if self._is_file else pa.ipc.open_stream
        if self._source.local:
            # Only what is looked at comes into memory.
            return opened(pa.memory_map(self._source.local))
        return opened(pa.PythonFile(self._source, "r"))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with self._source.words():
            reader = self._reader()
        if self._is_file:
            for number in range(reader.num_record_batches):
                with self._source.words():
                    batch = reader.get_batch(number)
                yield batch
            return
        while True:
            try:
                with self._source.words():
                    batch = reader.read_next_batch()
            except StopIteration:
                return
            yield batch


def _within(batch: pa.RecordBatch, at: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Of a batch that begins at row `at`, the rows that are wanted."""
    first, last = max(0, start - at), min(batch.num_rows, stop - at)
    if first < last:
        yield batch.slice(first, last - first)


class _Noted:
    """A file that remembers what its store raised: all else that reading ends with is damage."""

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._address = file, address
        self._failure: MediaError | None = None
        self.shown = repr(shown_address(address))
        self.local = "" if filesystem.is_remote(address) else filesystem.local_name(address)
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        try:
            with filesystem.reading(self._address):
                content: bytes = self._file.read(size)
                return content
        except MediaError as error:
            self._failure = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            with filesystem.reading(self._address):
                return int(self._file.seek(offset, whence))
        except MediaError as error:
            self._failure = error
            raise

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    @contextmanager
    def words(self) -> Iterator[None]:
        """Raises DamagedTable, or what the store raised."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, MediaError) as error:
            if self._failure is not None:
                raise self._failure from error
            raise DamagedTable(f"{self.shown} is no table that can be read: {error}") from error
