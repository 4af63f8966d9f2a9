"""WebDatasetShard: rows as members of a tar file, as the library webdataset reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.rowcolumns import Named, RowColumns, json_line
from streamenc.bulk.outputs.shard import Shard
from streamenc.bulk.outputs.tarmembers import TarMembers, member_name, npy
from streamenc.bulk.tokenizejob import ModelFacts

TEXT = "text"


class WebDatasetShard(Shard):
    """For each row, one behind the other:

        NAME.codes.npy     The tokens of each model, under the name of its column: (rows, frames).
        NAME.scales.npy    Where there are any.
        NAME.txt           Where a column `text` is passed through.
        NAME.json          All else, with the row's true key; see RowColumns.record.

    NAME is the key with its dots in percents; see `member_name`.
    """

    suffix: ClassVar[str] = ".tar"

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        super().__init__(folder, part, models, columns)
        self._columns = RowColumns(models, columns)
        self._tar = TarMembers(self.paths[0])

    def write(self, row: Row) -> None:
        name, record = member_name(row.key), self._columns.record(row)
        for facts, named, tokens in zip(self.models, self._columns.names, row.tokens, strict=True):
            for extension, content in self._files(facts, named, tokens, row):
                self._tar.add(f"{name}.{extension}", content)
        text = record.get(TEXT)
        if isinstance(text, str):
            self._tar.add(f"{name}.txt", text.encode())
        self._tar.add(f"{name}.json", json_line(record))

    def complete(self) -> None:
        self._tar.complete()

    def discard(self) -> None:
        self._tar.discard()

    def _files(
        self, facts: ModelFacts, named: Named, tokens: Tokens, row: Row
    ) -> Iterator[tuple[str, bytes]]:
        """The files of one model: extensions and what is in them."""
        yield f"{named.tokens}.npy", npy(tokens.data)
        if named.scales and tokens.scales is not None:
            yield f"{named.scales}.npy", npy(tokens.scales)
