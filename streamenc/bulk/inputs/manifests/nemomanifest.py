"""JSON lines as NeMo has them: {"audio_filepath": ..., "offset": ..., "duration": ..., ...}."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa

from streamenc.bulk.inputs.manifests.fieldcolumns import FieldColumns
from streamenc.bulk.inputs.manifests.linemanifest import (
    Line,
    LineManifest,
    record_of,
    seconds_of,
)
from streamenc.bulk.items import Item, printable
from streamenc.errors import InputError

# Which field names the file, by what models take; the first that is there.
PATHS = {
    "audio": ("audio_filepath", "video_filepath"),
    "video": ("video_filepath", "image_filepath"),
}
FIELDS = ("audio_filepath", "video_filepath", "image_filepath")


class NemoManifest(LineManifest):
    """A manifest of NeMo: files from where it lies, segments of them by `offset` and `duration`.

    Other fields are columns. Keys are the files as they are named there, with the segment where
    there is one: "a.flac#1.5+2.25".
    """

    kind = "nemo"

    def columns(self) -> pa.Schema:
        return self._columns.schema

    def item(self, line: Line) -> Item:
        record = record_of(line)
        paths = PATHS[self.takes]
        path = next((record[name] for name in paths if record.get(name) is not None), None)
        if not isinstance(path, str):
            raise InputError(f"got {' or '.join(paths)} {path!r}; wanted is the name of a file")
        offset, duration = seconds_of(record, "offset"), seconds_of(record, "duration")
        key = printable(path)
        if offset is not None:
            key += f"#{offset:.12g}+" + ("" if duration is None else f"{duration:.12g}")
        columns = self._columns.values(_passed(record))
        return Item(key, self.media(path), offset or 0.0, duration, columns=columns)

    @cached_property
    def _columns(self) -> FieldColumns:
        return FieldColumns(self.kept, self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        for line in self.lines():
            try:
                yield _passed(record_of(line))
            except InputError:
                continue  # it will be a fault


def _passed(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items() if name not in (*FIELDS, "offset", "duration")
    }
