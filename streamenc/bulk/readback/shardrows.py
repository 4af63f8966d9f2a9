"""The rows of shards, read from anywhere within one, by format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamenc.bulk.outputs.rowcolumns import names_of
from streamenc.bulk.readback.columnarrays import arrays_of
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.errors import MediaError, UsageError

READ_BYTES = 8 * 2**20
MAX_BATCH_ROWS = 1024

# A column's name -> its value. Tokens are arrays (rows, frames), or (tokens,) in the layout flat,
# or (rows, frames, height, width) of grids.
RowDict: TypeAlias = "dict[str, Any]"


class ShardReader(ABC):
    """Reads shards of one format.

    Args:
        models: Whose tokens each row has.
        columns: Which columns are read; None for all.
    """

    def __init__(self, models: Sequence[ModelFacts], columns: Sequence[str] | None) -> None:
        self.models, self.columns = models, columns
        self.tokens = {model.column: (model, names_of(model)) for model in models}

    @abstractmethod
    def names(self, paths: Sequence[Path]) -> list[str]:
        """The columns of a shard, by its files. Raises MediaError where it cannot be read."""

    @abstractmethod
    def rows(self, paths: Sequence[Path], start: int, stop: int) -> Iterator[RowDict]:
        """Rows from one to before another, as few of them in memory as the format allows.

        Raises MediaError where it cannot be read.
        """


class ParquetReader(ShardReader):
    """Reads what ParquetShard wrote."""

    def names(self, paths: Sequence[Path]) -> list[str]:
        (path,) = paths
        try:
            return list(pq.read_schema(path).names)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error

    def rows(self, paths: Sequence[Path], start: int, stop: int) -> Iterator[RowDict]:
        (path,) = paths
        try:
            with pq.ParquetFile(path) as file:
                for batch in self._batches(file, start, stop):
                    yield from self._rows(batch)
        except (OSError, pa.ArrowException, MediaError) as error:
            raise _unreadable(path, error) from error

    def _batches(self, file: Any, start: int, stop: int) -> Iterator[Any]:
        at, columns = 0, self._read_columns()
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if at >= stop:
                return
            if at + group.num_rows <= start:
                at += group.num_rows
                continue
            row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
            size = max(1, min(MAX_BATCH_ROWS, READ_BYTES // row_bytes))
            for batch in file.iter_batches(
                size, row_groups=[number], columns=columns, use_threads=False
            ):
                first, last = max(0, start - at), min(batch.num_rows, stop - at)
                at += batch.num_rows
                if first < last:
                    yield batch.slice(first, last - first)
                if at >= stop:
                    return

    def _rows(self, batch: Any) -> Iterator[RowDict]:
        names = batch.schema.names
        columns = [self._values(batch, name) for name in names]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    def _values(self, batch: Any, name: str) -> list[Any]:
        column = batch.column(name)
        if name not in self.tokens:
            values: list[Any] = column.to_pylist()
            return values
        model, names = self.tokens[name]
        if not names.shape:
            return arrays_of(column, 1 if model.layout == "flat" else 2)
        shapes = batch.column(names.shape).to_pylist()
        return [
            _shaped(array, shape) for array, shape in zip(arrays_of(column, 1), shapes, strict=True)
        ]

    def _read_columns(self) -> list[str] | None:
        """What is asked for, and what has the shapes of that."""
        if self.columns is None:
            return None
        shapes = {self.tokens[name][1].shape for name in self.columns if name in self.tokens}
        return [*self.columns, *(shapes - {"", *self.columns})]


def _shaped(array: np.ndarray[Any, Any], shape: list[int]) -> np.ndarray[Any, Any]:
    try:
        return array.reshape(shape)
    except (TypeError, ValueError) as error:
        raise MediaError(f"{array.size} numbers are said to have the shape {shape}") from error


def _unreadable(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path} cannot be read ({error}): `streamenc verify` says what to do")


# TokenizeJob.format -> what reads it.
READERS: dict[str, type[ShardReader]] = {"parquet": ParquetReader}


def reader_class(format: str) -> type[ShardReader]:
    """Raises UsageError where shards of a format are only written."""
    if format not in READERS:
        raise UsageError(
            f"a set of {format} is not read back here; of {', '.join(READERS)} it is: give "
            "tokenize that --format"
        )
    return READERS[format]
