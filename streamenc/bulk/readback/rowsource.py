"""RowSource: the shards of a set and what of their rows is read; goes to other processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamenc.bulk.readback.rowlayout import RowLayout
from streamenc.bulk.readback.roworder import Run
from streamenc.bulk.readback.shardrows import RowDict, ShardReader, reader_class
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.errors import InputError, MediaError, UsageError


@dataclass(frozen=True, slots=True)
class SetShard:
    """A finished part.

    Attributes:
        files: Within the set's folder.
        rows: How many it has.
        sha256: Of its files.
    """

    files: tuple[str, ...]
    rows: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class RowSource:
    """What a set's rows are read from, and as what.

    Attributes:
        folder: Of the set.
        format: Of its shards, as TokenizeJob.format.
        models: Whose tokens each row has.
        wanted: In which layout codes come; "" for that of the set.
        columns: Which ones come; None for all.
    """

    folder: Path
    format: str
    shards: tuple[SetShard, ...]
    models: tuple[ModelFacts, ...]
    wanted: str = ""
    columns: tuple[str, ...] | None = None

    @property
    def counts(self) -> list[int]:
        return [shard.rows for shard in self.shards]

    def check(self) -> None:
        """Raises UsageError for columns or a layout that the set cannot give."""
        self._layouts()
        reader = self._reader(self.columns)
        first = next((shard for shard in self.shards if shard.rows), None)
        if self.columns is None or first is None:
            return
        names = reader.names(self._paths(first))
        for column in self.columns:
            if column not in names:
                raise UsageError(
                    f"there is no column {column!r} in {str(self.folder)!r}; there are "
                    f"{', '.join(names)}"
                )

    def digest(self) -> str:
        """Of all that makes out which rows come from which numbers of them."""
        told = (
            self.format,
            self.wanted,
            self.columns,
            [(shard.rows, shard.sha256) for shard in self.shards],
        )
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]

    def read(self, runs: Iterable[Run]) -> Iterator[RowDict]:
        """Rows as dicts: tokens are arrays, (rows, frames), and the rest as Python has it.

        Raises MediaError for a shard that cannot be read, or has other rows than it should.
        """
        layouts = self._layouts()
        columns = self.columns
        if columns is not None and layouts:  # pieces between gaps are laid out by themselves
            gaps = {layout.names.gaps for layout in layouts if layout.names.tokens in columns}
            columns += tuple(gaps - set(columns))
        reader = self._reader(columns)
        for run in runs:
            shard = self.shards[run.shard]
            came = 0
            for row in reader.rows(self._paths(shard), run.start, run.stop):
                came += 1
                yield self._as_wanted(row, layouts)
            if came != run.stop - run.start:
                raise MediaError(
                    f"{shard.files[0]} has other rows than the manifest says: `streamenc verify "
                    f"{self.folder}` tells more"
                )

    def _as_wanted(self, row: RowDict, layouts: list[RowLayout]) -> RowDict:
        for layout in layouts:
            tokens, gaps = layout.names.tokens, layout.names.gaps
            if tokens in row:
                try:
                    row[tokens], row[gaps] = layout.change(row[tokens], row[gaps])
                except InputError as error:
                    raise MediaError(f"{row.get('key', 'a row')}, {tokens}: {error}") from error
        if self.columns is None:
            return row
        return {column: row[column] for column in self.columns}

    def _layouts(self) -> list[RowLayout]:
        """Of the models whose codes come in another one than they have."""
        return [
            RowLayout(model, model.layout, self.wanted)
            for model in self.models
            if model.kind == "codes" and self.wanted not in ("", model.layout)
        ]

    def _reader(self, columns: tuple[str, ...] | None) -> ShardReader:
        return reader_class(self.format)(self.models, columns)

    def _paths(self, shard: SetShard) -> list[Path]:
        return [self.folder / name for name in shard.files]
