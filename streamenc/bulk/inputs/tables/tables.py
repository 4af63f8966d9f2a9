"""Tables of sound or images: Parquet files, or Arrow's, of which each row is an item."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.types as types

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.inputs.filelist import FileList
from streamenc.bulk.inputs.tables.mediacolumn import MediaColumn
from streamenc.bulk.inputs.tables.tablefile import (
    ENDINGS,
    DamagedTable,
    TableFile,
    table_file,
)
from streamenc.bulk.items import Fault, Item, printable
from streamenc.errors import InputError, UsageError

ROWS = "rows.json"
KEYS = ("key", "__key__", "id", "utt_id")
LOOKED_AT = 100  # rows, by which a column is known to hold keys
FILES_LOOKED_AT = 10  # until one can be read


class TableInput(Input):
    """The rows of one file or several, in their order; parts are ranges of them.

    Parts have at most `items_per_shard` rows, of one file; they end where row groups end, unless
    those are larger. Keys are those of a column `key`, `__key__`, `id` or `utt_id`, where all that
    are looked at differ, and else the file and the number of the row: "train.parquet:17". All other
    columns are passed through, but for those of other sound and images.

    Args:
        column: What is encoded, where its type and name do not tell; see MediaColumn.
    """

    kind = "parquet"
    endings: ClassVar[Sequence[str]] = ENDINGS

    def __init__(
        self, address: str, takes: str, kept: Path, *, column: str = "", **options: Any
    ) -> None:
        super().__init__(address, takes, kept, **options)
        self._column = column
        self._files = FileList(address, kept, self.endings)

    def columns(self) -> pa.Schema:
        return self._form.passed

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        counts, first = [], 0  # -1 of a file that cannot be read, which is one item
        for name in self._files.names:
            source = printable(shown_address(name))
            try:
                with table_file(self._files.address_of(name)) as table:
                    groups = table.groups
            except DamagedTable:
                counts.append(-1)
                yield Span(source, first, first + 1, 1)
                first += 1
                continue
            rows = groups[-1] if groups else 0
            counts.append(rows)
            for start, stop in _ranges(groups, items_per_shard):
                yield Span(source, first + start, first + stop, stop - start)
            first += rows
        with open(self.kept / ROWS, "w") as file:
            json.dump(counts, file)
            file.flush()
            os.fsync(file.fileno())

    def items(self, span: Span) -> Iterator[Item | Fault]:
        ends = self._ends
        number = bisect_right(ends, span.start)
        before = ends[number - 1] if number else 0
        name = self._files.names[number]
        start, stop = span.start - before, span.stop - before
        at = start
        while at < stop:
            end = stop
            try:
                with table_file(self._files.address_of(name)) as table:
                    end = next((last for last in table.groups if at < last < stop), stop)
                    for batch in self._batches(table, at, stop):
                        for item in self._rows(batch, name, at):
                            yield self._finished(item, number)
                        at += batch.num_rows
                        end = next((last for last in table.groups if at < last < stop), stop)
            except DamagedTable as error:
                # The rest of a row group; the next one may be whole.
                for row in range(at, end):
                    label = printable(shown_address(name))
                    where = label if self._counts[number] < 0 else f"{label}:{row}"
                    yield Fault(where, label, str(error), "MediaError")
                at = end

    def _batches(self, table: TableFile, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        column = self._form.media.name
        if column not in table.schema.names:
            raise DamagedTable(f"it has no column {column!r}, as others of the set have")
        return table.batches(start, stop, self._form.wanted(table.schema))

    def _rows(self, batch: pa.RecordBatch, name: str, first: int) -> Iterator[Item | Fault]:
        """What rows of a file are, of which the first has that number."""
        return self._form.items(batch, name, first, self._files.root)

    def _finished(self, item: Item | Fault, number: int) -> Item | Fault:
        """An item of the file of that number, for kinds that know more of it."""
        return item

    @cached_property
    def _ends(self) -> list[int]:
        """Of each file, how many rows there are up to its end."""
        return list(accumulate(map(abs, self._counts)))

    @cached_property
    def _counts(self) -> list[int]:
        counts: list[int] = json.loads((self.kept / ROWS).read_bytes())
        return counts

    @cached_property
    def _form(self) -> TableForm:
        why = ""
        names = self._files.names
        for name in names[:FILES_LOOKED_AT]:
            try:
                with table_file(self._files.address_of(name)) as table:
                    form = TableForm(table.schema, self.takes, self._column)
                    first = _keys(table, form.candidates)
                with table_file(self._files.address_of(names[-1])) as table:
                    last = _keys(table, form.candidates) if name != names[-1] else {}
            except DamagedTable as error:
                why = why or str(error)
                continue
            form.choose_key(first, last)
            return form
        shown = repr(shown_address(self.address))
        raise UsageError(f"there is no table in {shown} that can be read: {why}")


class TableForm:
    """Which columns of a table are what.

    Attributes:
        media: What is encoded.
        passed: What is passed through.
        candidates: Columns that may hold keys.
        key: That which does; "" for none.
    """

    def __init__(self, schema: pa.Schema, takes: str, column: str = "") -> None:
        self.media = MediaColumn(schema, takes, column)
        self.candidates = [
            name for name in KEYS if name in schema.names and _names_things(schema.field(name).type)
        ]
        self.key = ""
        self._schema = schema

    @property
    def passed(self) -> pa.Schema:
        left_out = {self.media.name, *self.media.others}
        if self.key in ("key", "__key__"):
            left_out.add(self.key)
        return pa.schema(field for field in self._schema if field.name not in left_out)

    def choose_key(self, *looked_at: dict[str, list[Any]]) -> None:
        """Takes the first candidate whose values are there, and differ."""
        for name in self.candidates:
            values = [value for each in looked_at for value in each.get(name, [])]
            if values and None not in values and len({*values}) == len(values):
                self.key = name
                return

    def wanted(self, schema: pa.Schema) -> list[str]:
        """What is read of a table with a schema of its own."""
        names = [self.media.name, self.media.rate, self.key, *self.passed.names]
        return [name for name in dict.fromkeys(names) if name and name in schema.names]

    def items(
        self, batch: pa.RecordBatch, name: str, first: int, root: str
    ) -> Iterator[Item | Fault]:
        """Rows as items.

        name   Of the file, from `root` on.
        first  The number in it of the first of them.
        """
        label = printable(shown_address(name))
        folder = filesystem.parent(root + name) or "."
        columns = {
            each: _values(batch.column(each))
            for each in self.passed.names
            if each in batch.schema.names
        }
        keys = batch.column(self.key).to_pylist() if self.key in batch.schema.names else []
        rates = batch.column(self.media.rate).to_pylist() if self.media.rate else []
        media = batch.column(self.media.name)
        for at in range(batch.num_rows):
            where = f"{label}:{first + at}"
            key = str(keys[at]) if keys and keys[at] is not None else where
            try:
                found = self.media.media(media[at], rates[at] if rates else None, folder, where)
            except InputError as error:
                yield Fault(key, where, str(error))
                continue
            passed = {each: values[at] for each, values in columns.items()}
            yield Item(key, found, columns=passed)


def _ranges(groups: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Rows as parts: whole row groups, as many as there is room for, or pieces of large ones."""
    start = end = 0
    for last in groups:
        if last - start > most and end > start:
            yield start, end
            start = end
        while last - start > most:
            yield start, start + most
            start += most
        end = last
    if end > start:
        yield start, end


def _keys(table: Any, candidates: Sequence[str]) -> dict[str, list[Any]]:
    """The first values of columns that may hold keys."""
    there = [name for name in candidates if name in table.schema.names]
    found: dict[str, list[Any]] = {name: [] for name in there}
    if there:
        for batch in table.batches(0, min(table.rows, LOOKED_AT), there):
            for name in there:
                found[name] += batch.column(name).to_pylist()
    return found


def _names_things(type: pa.DataType) -> bool:
    return bool(
        types.is_integer(type)
        or types.is_string(type)
        or types.is_large_string(type)
        or types.is_string_view(type)
    )


def _values(column: pa.Array) -> list[Any]:
    """Python's, or where those have no nanoseconds, pyarrow's."""
    exact = types.is_temporal(column.type) and getattr(column.type, "unit", "") == "ns"
    return list(column) if exact else list(column.to_pylist())
