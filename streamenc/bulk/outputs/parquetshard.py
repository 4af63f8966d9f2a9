"""ParquetShard: rows as Parquet, as `datasets`, DuckDB and polars read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.rowcolumns import (
    Named,
    RowColumns,
    fitted,
    flag,
    frame_rate,
    tokens_type,
)
from streamenc.bulk.outputs.shard import Shard
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import output_error

# What is held in memory, and written as one row group.
GROUP_BYTES, GROUP_ROWS = 32 * 2**20, 2**14
ROW_BYTES = 256  # of what each row has beside its tokens and what is passed through


class ParquetShard(Shard):
    """A row for each item; `rowcolumns` has the columns.

    Where there are no frames, the lists are empty, one for each codebook or bin.
    """

    suffix: ClassVar[str] = ".parquet"

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        super().__init__(folder, part, models, columns)
        (self.path,) = self.paths
        self._columns = RowColumns(models, columns)
        self._rows: list[Row] = []
        self._bytes = 0
        schema = self._columns.schema
        try:
            # Codes take a dictionary well, by which each has the bits that it needs.
            self._writer = pq.ParquetWriter(
                self.path,
                schema,
                compression="zstd",
                use_dictionary=[
                    leaf for field in schema for leaf, type in _leaves(field) if not _floats(type)
                ],
                write_statistics=[field.name for field in schema if not _nested(field.type)],
            )
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def write(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += ROW_BYTES + sum(tokens.data.nbytes for tokens in row.tokens)
        self._bytes += sum(size_of(value) for value in row.columns.values())
        if self._bytes >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            try:
                self._flush()
            except OSError as error:
                raise output_error(str(self.path), error) from error

    def complete(self) -> None:
        try:
            self._flush()
            self._writer.close()
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def discard(self) -> None:
        with suppress(OSError):  # the disk is full for its end too
            self._writer.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches([record_batch(self._columns, self._rows)])
            self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows, self._bytes = [], 0


def record_batch(columns: RowColumns, rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as a pyarrow.RecordBatch of `columns.schema`."""
    arrays: dict[str, pa.Array] = {"key": pa.array([row.key for row in rows], pa.string())}
    for at, (facts, names) in enumerate(zip(columns.models, columns.names, strict=True)):
        arrays |= _of_model(facts, names, rows, [row.tokens[at] for row in rows])
    flags = [list(row.flags) for row in rows]
    for passed in columns.passed:
        values = [row.columns.get(passed.source) for row in rows]
        arrays[passed.field.name], misfits = fitted(values, passed.field.type)
        for misfit in misfits:
            flags[misfit].append(flag(passed))
    arrays["n_samples"] = pa.array([row.n_samples for row in rows], pa.int64())
    arrays["rate"] = pa.array([row.rate for row in rows], pa.float64())
    arrays["seconds"] = pa.array([row.seconds for row in rows], pa.float64())
    arrays["flags"] = pa.array(flags, pa.list_(pa.string()))
    schema = columns.schema
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _of_model(
    facts: ModelFacts, names: Named, rows: Sequence[Row], tokens: Sequence[Tokens]
) -> dict[str, pa.Array]:
    data = [made.data for made in tokens]
    values = pa.array(_joined(data, facts.dtype))
    if pa.types.is_list(tokens_type(facts).value_type):
        heights = [len(array) for array in data]
        lengths = np.repeat([array.shape[1] for array in data], heights)
        values = _lists(_lists(values, lengths), heights)
    else:
        values = _lists(values, [array.size for array in data])
    made = {names.tokens: values}
    if names.shape:
        shapes = [np.array(array.shape, np.int32) for array in data]
        made[names.shape] = _listed(shapes, "int32")
    if names.scales:
        none = np.zeros(0, np.float32)
        scales = [none if each.scales is None else each.scales for each in tokens]
        made[names.scales] = _listed(scales, "float32")
    made[names.gaps] = _listed([np.array(each.gaps, np.int64) for each in tokens], "int64")
    made[names.frame_rate] = pa.array([frame_rate(facts, row) for row in rows], pa.float64())
    made[names.model] = pa.array([facts.name] * len(rows), pa.string())
    made[names.fingerprint] = pa.array([facts.fingerprint] * len(rows), pa.string())
    return made


def _joined(arrays: Iterable[np.ndarray[Any, Any]], dtype: str) -> np.ndarray[Any, Any]:
    """All numbers of all arrays, one array behind the other."""
    flat = [array.reshape(-1) for array in arrays]
    return np.concatenate([np.zeros(0, dtype), *flat])


def _listed(arrays: Sequence[np.ndarray[Any, Any]], dtype: str) -> pa.Array:
    return _lists(pa.array(_joined(arrays, dtype)), [len(array) for array in arrays])


def _lists(values: pa.Array, lengths: Any) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _leaves(field: pa.Field, path: str = "") -> Iterable[tuple[str, pa.DataType]]:
    """The columns that a field is in Parquet, by their paths."""
    path, type = f"{path}{field.name}", field.type
    if pa.types.is_map(type):
        yield from _leaves(type.key_field.with_name("key"), f"{path}.key_value.")
        yield from _leaves(type.item_field.with_name("value"), f"{path}.key_value.")
    elif pa.types.is_struct(type):
        for inner in type:
            yield from _leaves(inner, f"{path}.")
    elif _nested(type):
        yield from _leaves(type.value_field.with_name("element"), f"{path}.list.")
    else:
        yield path, type


def _nested(type: pa.DataType) -> bool:
    return bool(pa.types.is_nested(type))


def _floats(type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type))


def size_of(value: Any) -> int:
    """About how many bytes a value that is passed through takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(size_of(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(inner) for inner in value)
    return 8
