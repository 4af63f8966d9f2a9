"""Lhotse Shar: shards of cuts, and beside each a tar with their recordings, in the same order."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import pyarrow as pa

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.archives.sharcuts import MAX_LINE_BYTES, cut_id, read_cut
from streamenc.bulk.inputs.archives.tarreading import DamagedTar, TarReader
from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.inputs.filelist import FileList
from streamenc.bulk.inputs.manifests.lhotsecuts import COLUMNS
from streamenc.bulk.items import Fault, Item, Media, printable
from streamenc.errors import InputError, MediaError, UsageError

CUTS = re.compile(r"cuts\..*\.?jsonl(\.gz)?")


class LhotseSharInput(Input):
    """Each shard of cuts is a part, whose cuts are its items; keys are their ids.

    The recording of a cut is the next one in the tar, and has its id. What the supervisions of a
    cut say are columns: see COLUMNS of lhotsecuts.

    Args:
        field: Which tars hold the sound: `recording.000000.tar`, or those of another field.
    """

    kind = "lhotse-shar"

    def __init__(
        self, address: str, takes: str, kept: Path, *, field: str = "recording", **options: Any
    ) -> None:
        super().__init__(address, takes, kept, **options)
        if takes != "audio":
            raise UsageError("the models take images, and Lhotse Shar holds sound")
        self._files = _Shards(address, kept, field)

    def columns(self) -> pa.Schema:
        assert self._files.names
        return COLUMNS

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        for number in range(0, len(self._files.names), 2):
            yield Span(printable(shown_address(self._files.names[number])), number, number + 2)

    def items(self, span: Span) -> Iterator[Item | Fault]:
        cuts, tar = map(self._files.address_of, self._files.names[span.start : span.stop])
        with TarReader(tar) as archive:
            recordings = _Recordings(archive)
            for number, line in enumerate(_lines(cuts), 1):
                yield _item(line, f"{span.source}:{number}", recordings)


class _Shards(FileList):
    """Shards of cuts, each followed by its tar."""

    def __init__(self, address: str, kept: Path, field: str) -> None:
        super().__init__(address, kept, ())
        self._field = field

    def _found(self) -> Iterator[str]:
        names = [name for name, is_folder in filesystem.names_in(self.root) if not is_folder]
        cuts = [name for name in names if CUTS.fullmatch(name)]
        tars = [name for name in names if re.fullmatch(rf"{re.escape(self._field)}\..*tar", name)]
        if len(cuts) != len(tars):
            raise UsageError(
                f"{shown_address(self.address)!r} has {len(cuts)} shards of cuts and {len(tars)} "
                f"of {self._field!r}: each needs the other"
            )
        for pair in zip(cuts, tars, strict=True):
            yield from pair


class _Recordings:
    """The recordings of a tar, one behind the other, each as Lhotse writes it: bytes, then JSON."""

    def __init__(self, archive: TarReader) -> None:
        self._archive = archive
        self._members = self._data()
        self._next: tuple[str, Media | None] | None = None
        self._damage: DamagedTar | None = None

    def skip(self) -> None:
        """Leaves one out, of a cut that nobody can read."""
        self._look()
        self._next = None

    def of(self, cut: str) -> Media:
        """Raises InputError where the next recording is of another cut, MediaError for damage."""
        self._look()
        shown = repr(shown_address(self._archive.address))
        if self._next is None:
            raise self._damage or InputError(f"{shown} ends before its recording")
        name, media = self._next
        if name != cut:
            raise InputError(f"its recording is not in {shown}, where that of {name!r} comes next")
        self._next = None
        if media is None:
            raise InputError(f"there is no recording of it in {shown}")
        return media

    def _look(self) -> None:
        if self._next is None and self._damage is None:
            try:
                self._next = next(self._members, None)
            except DamagedTar as error:
                self._damage = error

    def _data(self) -> Iterator[tuple[str, Media | None]]:
        for member in self._archive:
            name, _, ending = member.name.rpartition(".")
            if ending not in ("json", "nometa"):
                there = member.plain and ending != "nodata"
                yield name, self._archive.media(member) if there else None


def _item(line: bytes | InputError, where: str, recordings: _Recordings) -> Item | Fault:
    key = where
    try:
        said = _decoded(line)
        key = cut_id(said)
        if not key:
            recordings.skip()
            raise InputError("the line is no cut: it has no id")
        media = recordings.of(key)
        cut = read_cut(said)
    except (InputError, MediaError) as error:
        return Fault(key or where, where, str(error), type(error).__name__)
    return Item(
        cut.id,
        media,
        cut.offset_seconds,
        cut.duration_seconds,
        channels=cut.channels,
        columns=cut.columns,
    )


def _decoded(line: bytes | InputError) -> Any:
    """{} for a line that is no JSON."""
    if isinstance(line, InputError):
        raise line
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return {}


def _lines(address: str) -> Iterator[bytes | InputError]:
    """Of a shard of cuts; behind the last whole one, what is wrong with the rest."""
    with filesystem.opened(address) as raw, filesystem.reading(address):
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if address.endswith(".gz") else raw
        while True:
            try:
                line = file.readline(MAX_LINE_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                yield InputError(f"the cuts cannot be unzipped to their end: {error}")
                return
            if not line:
                return
            if len(line) >= MAX_LINE_BYTES:
                yield InputError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
                return
            if line.strip():
                yield line
