"""NpzShard: rows as arrays of one `.npz`, for programs that have numpy and nothing else."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from streamenc.bulk.items import Row
from streamenc.bulk.outputs.rowcolumns import RowColumns, described, json_line
from streamenc.bulk.outputs.shard import Shard
from streamenc.bulk.outputs.tarmembers import npy
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import open_output, output_error

ROWS, MODELS = "rows.jsonl", "models.json"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of zip files


class NpzShard(Shard):
    """One file of a part, so that a million short items are no million files; `numpy.load` opens it
    at once and reads what it is asked for.

        set["KEY/codes"]       The tokens, (rows, frames); as each column of tokens is called.
        set["KEY/scales"]      Where there are any.
        set["rows.jsonl"]      Bytes: of each row a line of JSON, see RowColumns.record.
        set["models.json"]     Bytes: what the models are.

    All can be read without pickles.
    """

    suffix: ClassVar[str] = ".npz"

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        super().__init__(folder, part, models, columns)
        (self.path,) = self.paths
        self._columns = RowColumns(models, columns)
        self._file = open_output(str(self.path))
        self._zip = zipfile.ZipFile(self._file, "w", allowZip64=True)
        self._lines: list[bytes] = []

    def write(self, row: Row) -> None:
        self._lines.append(json_line(self._columns.record(row)))
        for named, tokens in zip(self._columns.names, row.tokens, strict=True):
            self._add(f"{row.key}/{named.tokens}.npy", npy(tokens.data))
            if named.scales and tokens.scales is not None:
                self._add(f"{row.key}/{named.scales}.npy", npy(tokens.scales))

    def complete(self) -> None:
        self._add(ROWS, b"".join(self._lines))
        self._add(MODELS, described(self.models))
        try:
            self._zip.close()
            self._file.close()
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def discard(self) -> None:
        with suppress(OSError):
            self._zip.close()
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _add(self, name: str, content: bytes) -> None:
        member = zipfile.ZipInfo(name, FIRST_DAY)
        member.compress_type = zipfile.ZIP_DEFLATED
        member.external_attr = 0o644 << 16
        try:
            self._zip.writestr(member, content)
        except OSError as error:
            raise output_error(str(self.path), error) from error
