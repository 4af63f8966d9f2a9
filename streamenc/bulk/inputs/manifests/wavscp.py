"""wav.scp of Kaldi, a key and a file on each line, and `segments` of the recordings in it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Span
from streamenc.bulk.inputs.manifests.linemanifest import Line, LineManifest
from streamenc.bulk.items import Item
from streamenc.errors import InputError

INDEX = "recordings.sqlite"
_ARCHIVE = re.compile(r"\.ark:\d+$")


class WavScp(LineManifest):
    """`wav.scp`, or the folder that it lies in.

    Keys are those of its lines; where there is a file `segments`, each of that is an item: its key,
    that of a recording, where it begins and ends in seconds, -1 for the end of the recording.

    Args:
        segments: Another name of that file, from where wav.scp lies; "" where it is not to be read.
    """

    kind = "wav.scp"

    def __init__(
        self, address: str, takes: str, kept: Path, segments: str = "segments", **options: Any
    ) -> None:
        super().__init__(address, takes, kept, **options)
        self._named = segments
        self._index: sqlite3.Connection

    def columns(self) -> pa.Schema:
        return pa.schema([])

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        self._prepare()
        if self._segments:
            self._write_index()
            self.lines_of = self._segments
        yield from super().spans(items_per_shard)

    def items(self, span: Span) -> Iterator[Any]:
        self._prepare()
        if not self._segments:
            yield from super().items(span)
            return
        self.lines_of = self._segments
        address = (self.kept / INDEX).absolute().as_uri()
        with closing(sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)) as self._index:
            yield from super().items(span)

    def item(self, line: Line) -> Item:
        text = line.text.decode()
        if not self._segments:
            key, name = _pair(text)
            return Item(key, self.media(name))
        fields = text.split()
        if len(fields) != 4:
            raise InputError(f"got {text[:80]!r}; wanted are a key, a recording, and two times")
        key, recording, begins, ends = fields
        try:
            start, stop = float(begins), float(ends)
        except ValueError as error:
            raise InputError(f"got times {begins!r} and {ends!r}; wanted are seconds") from error
        found = self._index.execute("SELECT name FROM files WHERE key = ?", (recording,))
        row = found.fetchone()
        if row is None:
            raise InputError(f"{key} is of recording {recording!r}, which wav.scp does not have")
        _, name = _pair(f"{recording} {row[0]}")
        return Item(key, self.media(name), start, None if stop == -1 else stop - start)

    def _prepare(self) -> None:
        if filesystem.is_folder(self.address):
            self.address = self.address.rstrip("/") + "/wav.scp"
        self.lines_of = self.address

    @cached_property
    def _segments(self) -> str:
        """The address of that file; "" where there is none."""
        if not self._named:
            return ""
        found = filesystem.joined(filesystem.parent(self.address), self._named)
        if self._named == "segments" and not filesystem.exists(found):
            return ""
        return found

    def _write_index(self) -> None:
        """Files by keys, as a segment can be of any of them."""
        path = self.kept / INDEX
        with closing(sqlite3.connect(path)) as index, index:
            index.execute("CREATE TABLE files (key TEXT PRIMARY KEY, name TEXT)")
            for line in self.lines():
                key, *name = line.text.decode(errors="replace").split(maxsplit=1)
                index.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", (key, "".join(name)))
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _pair(text: str) -> tuple[str, str]:
    """The key and the file of a line. Raises InputError for what is no file."""
    key, *rest = text.split(maxsplit=1)
    if not rest:
        raise InputError(f"got {text[:80]!r}; wanted are a key and a file")
    name = rest[0].strip()
    if name.endswith("|") or name.startswith("|"):
        raise InputError(f"{key} is a command ({name[:80]}); commands are never run: name a file")
    if _ARCHIVE.search(name) or name == "-":
        raise InputError(f"{key} is in an archive of Kaldi or a pipe ({name[:80]}); name a file")
    return key, name
