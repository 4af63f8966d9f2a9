"""ParquetShard: rows as Parquet, as `datasets`, DuckDB and polars read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.shard import Shard
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import output_error

GROUP_BYTES = 32 * 2**20


def schema_of(models: Sequence[ModelFacts], columns: pa.Schema) -> pa.Schema:
    """The columns of a set: its own, then those that are passed through."""
    fields = [pa.field("key", pa.string(), nullable=False)]
    for model in models:
        value = pa.from_numpy_dtype(np.dtype(model.dtype))
        fields.append(pa.field(model.column, pa.list_(pa.list_(value))))
    fields += [
        pa.field("n_samples", pa.int64()),
        pa.field("rate", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("flags", pa.list_(pa.string())),
    ]
    return pa.schema([*fields, *columns])


class ParquetShard(Shard):
    """A row for each item."""

    suffix: ClassVar[str] = ".parquet"

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        super().__init__(folder, part, models, columns)
        (self.path,) = self.paths
        self._schema = schema_of(models, columns)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        try:
            self._writer = pq.ParquetWriter(self.path, self._schema, compression="zstd")
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def write(self, row: Row) -> None:
        record: dict[str, Any] = {"key": row.key}
        for model, tokens in zip(self.models, row.tokens, strict=True):
            record[model.column] = _lists(tokens)
            self._bytes += tokens.data.nbytes
        record |= {
            "n_samples": row.n_samples,
            "rate": row.rate,
            "seconds": row.seconds,
            "flags": list(row.flags),
            **row.columns,
        }
        self._rows.append(record)
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def complete(self) -> None:
        try:
            self._flush()
            self._writer.close()
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def discard(self) -> None:
        self._writer.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0


def _lists(tokens: Tokens) -> list[Any]:
    return [list(row) for row in tokens.data]
