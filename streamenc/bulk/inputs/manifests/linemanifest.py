"""LineManifest: a text file with an item on each line, read part by part, also zipped."""

from __future__ import annotations

import bisect
import gzip
import json
import os
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.items import Fault, Item, Local, Remote
from streamenc.errors import InputError, MediaError, StreamencError

MAX_LINE_BYTES = 32 << 20
NUMBERS = "lines.bin"
PLACE = struct.Struct("<QQ")  # where a part begins, and with which line


class Line(NamedTuple):
    """A line of a manifest.

    Attributes:
        number: From 1 on.
        start, stop: Its bytes, of the file as it is unzipped.
        text: Without its end.
    """

    number: int
    start: int
    stop: int
    text: bytes


class LineManifest(Input):
    """What manifests have in common: a part is a range of bytes of the text.

    Which line a part begins with is kept, so that faults can name lines: a PLACE for each part, in
    order, of which a few are read to find one.
    """

    def __init__(self, address: str, takes: str, kept: Path, **options: Any) -> None:
        super().__init__(address, takes, kept, **options)
        self.lines_of = address

    @abstractmethod
    def item(self, line: Line) -> Item:
        """What a line says. Raises InputError, ValueError for text that is no JSON or UTF-8."""

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        source = shown_address(self.lines_of)
        start = stop = count = 0
        with open(self.kept / NUMBERS, "wb") as places:
            for line in self.lines():
                if not count:
                    start = line.start
                    places.write(PLACE.pack(start, line.number))
                stop, count = line.stop, count + 1
                if count == items_per_shard:
                    yield Span(source, start, stop, count)
                    count = 0
            places.flush()
            os.fsync(places.fileno())
        if count:
            yield Span(source, start, stop, count)

    def items(self, span: Span) -> Iterator[Item | Fault]:
        for line in self.lines(span.start, span.stop, self._number_at(span.start)):
            where = f"{span.source}, line {line.number}"
            try:
                yield self.item(line)
            except (StreamencError, ValueError, RecursionError) as error:
                kind = type(error).__name__ if isinstance(error, StreamencError) else "InputError"
                yield Fault(where, where, str(error), kind)

    def _number_at(self, start: int) -> int:
        """Of the line that a part begins with."""
        with open(self.kept / NUMBERS, "rb") as places:

            def place(at: int) -> tuple[int, int]:
                places.seek(at * PLACE.size)
                begin, number = PLACE.unpack(places.read(PLACE.size))
                return begin, number

            count = os.fstat(places.fileno()).st_size // PLACE.size
            at = bisect.bisect_left(range(count), start, key=lambda each: place(each)[0])
            return place(at)[1]

    def lines(self, start: int = 0, stop: int = -1, number: int = 1) -> Iterator[Line]:
        """Those that are not empty. Raises MediaError where they cannot be read."""
        at = start
        with self._opened() as file:
            file.seek(start)
            while at != stop and (text := file.readline(MAX_LINE_BYTES + 1)):
                if len(text) > MAX_LINE_BYTES:
                    raise MediaError(
                        f"line {number} of {shown_address(self.lines_of)!r} has more than "
                        f"{MAX_LINE_BYTES >> 20} MiB: is it a manifest, with an item on each line?"
                    )
                if text.strip():
                    yield Line(number, at, at + len(text), text.strip())
                at, number = at + len(text), number + 1

    def media(self, name: str) -> Local | Remote:
        """A file that the manifest names, from where it lies. Raises UsageError."""
        if "\0" in name or not name:
            raise InputError(f"{name!r} is no name of a file")
        address = filesystem.joined(filesystem.parent(self.lines_of), name)
        return Remote(address) if filesystem.is_remote(address) else Local(address)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        address = self.lines_of
        with filesystem.opened(address) as raw, filesystem.reading(address):
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            try:
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                shown = shown_address(address)
                raise MediaError(f"{shown!r} cannot be unzipped: {error}") from error


def record_of(line: Line) -> dict[str, Any]:
    """An object of JSON. Raises InputError for all else."""
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the line is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"the line is no object of JSON, but begins with {line.text[:20]!r}")
    return record


def seconds_of(record: dict[str, Any], name: str) -> float | None:
    """A time. Raises InputError where it is no number."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"got {name} {value!r}; wanted is a number of seconds")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"got {name} {str(value)[:20]}...; it is no time") from error
