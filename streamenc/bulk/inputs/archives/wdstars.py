"""Tars of WebDataset: members of one name are a sample, whose sound or images are an item."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamenc.addresses import shown_address
from streamenc.bulk.inputs.archives.tarreading import DamagedTar, Member, TarReader
from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.inputs.filelist import FileList
from streamenc.bulk.inputs.folder import FILMS, IMAGES, SOUND, SUFFIXES
from streamenc.bulk.items import Fault, Item, Media, printable
from streamenc.errors import UsageError

TARS = (".tar", ".tar.gz", ".tgz")
LOOKED_AT = 100  # samples, of which the columns are learned
TARS_LOOKED_AT = 10  # until one has samples
MAX_COLUMN_BYTES = 1 << 20
# What a sample's sound or images are, the first of them that it has.
ORDERS = {"audio": (SOUND, FILMS), "video": (FILMS, IMAGES)}
WHAT = {"audio": "sound", "video": "images or film"}
TEXTS = frozenset(
    ".cls .cls2 .class .count .csv .ctm .id .index .inx .jsn .json .jsonl .lab .lbl .lng .lrc .md "
    ".seg .srt .text .textgrid .transcript .tsv .txt .vtt .xml .yaml .yml".split()
)
LEFT_OUT = "left_out"
# The key, and what is behind the first dot of the name.
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)


class WebDatasetInput(Input):
    """Each tar is a part, whose samples are its items, in their order.

    Keys are names up to the first dot of their last part, as in WebDataset. Of a sample's members,
    the sound or images are what is encoded, and those that are text or of at most MAX_COLUMN_BYTES
    are passed through, each under its extension: text as such, all else as bytes. What is too
    large, or stands in none of the first samples of the first tar, is left out, and the row has the
    flag `left_out`. Other sound and images are no columns.

    Args:
        member: The extension of what is encoded, such as "mic1.flac", where a sample has several.
    """

    kind = "webdataset"

    def __init__(
        self, address: str, takes: str, kept: Path, *, member: str = "", **options: Any
    ) -> None:
        super().__init__(address, takes, kept, **options)
        self._member = member.lower().lstrip(".")
        self._files = FileList(address, kept, TARS)

    def columns(self) -> pa.Schema:
        return self._columns

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        for number, name in enumerate(self._files.names):
            yield Span(printable(shown_address(name)), number, number + 1)

    def items(self, span: Span) -> Iterator[Item | Fault]:
        for name in self._files.names[span.start : span.stop]:
            address = self._files.address_of(name)
            with TarReader(address) as archive:
                yield from self._items(archive)

    @cached_property
    def _columns(self) -> pa.Schema:
        why = ""
        for name in self._files.names[:TARS_LOOKED_AT]:
            extensions: set[str] = set()
            keys: set[str] = set()
            with TarReader(self._files.address_of(name)) as archive:
                try:
                    for key, extension, member in _named(archive):
                        keys.add(key)
                        if len(keys) > LOOKED_AT:
                            break
                        if member.size <= MAX_COLUMN_BYTES and not _is_media(extension):
                            extensions.add(extension)
                except DamagedTar as error:
                    why = why or f"{error}"
            if keys:
                return pa.schema(
                    (each, pa.string() if _last(each) in TEXTS else pa.binary())
                    for each in sorted(extensions)
                )
        shown = repr(shown_address(self.address))
        raise UsageError(f"there is no sample of WebDataset in {shown}: {why or 'it is empty'}")

    def _items(self, archive: TarReader) -> Iterator[Item | Fault]:
        sample: _Sample | None = None
        try:
            for key, extension, member in _named(archive):
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield self._made(sample)
                    sample = _Sample(key, shown_address(archive.address))
                self._take(sample, extension, member, archive)
            if sample is not None:
                yield self._made(sample)
        except DamagedTar as error:
            if sample is not None and sample.media:
                yield self._made(sample)
                sample = None
            key = os.path.basename(shown_address(archive.address)) if sample is None else sample.key
            yield Fault(key, shown_address(archive.address), str(error), "MediaError")

    def _take(self, sample: _Sample, extension: str, member: Member, archive: TarReader) -> None:
        if extension in sample.seen:
            sample.wrong = f"two members are called {sample.key}.{extension}"
            return
        sample.seen.add(extension)
        if _is_media(extension) or extension == self._member:
            if self._member in ("", extension):
                self._take_media(sample, extension, member, archive)
            return
        if (
            extension not in self._columns.names
            or member.size > MAX_COLUMN_BYTES
            or not member.plain
        ):
            sample.flags.add(LEFT_OUT)
            return
        content = archive.read(member)
        if self._columns.field(extension).type != pa.string():
            sample.columns[extension] = content
            return
        try:
            sample.columns[extension] = content.decode()
        except UnicodeDecodeError:
            sample.flags.add(LEFT_OUT)

    def _take_media(
        self, sample: _Sample, extension: str, member: Member, archive: TarReader
    ) -> None:
        rank = self._rank(extension)
        if rank is None:
            return
        if not member.plain:
            sample.wrong = f"{member.name} is a link, or has holes, and is no sound by itself"
            return
        sample.media.append((rank, extension, archive.media(member)))

    def _rank(self, extension: str) -> int | None:
        if extension == self._member:
            return 0
        suffix = _last(extension)
        ranks = (rank for rank, known in enumerate(ORDERS[self.takes]) if suffix in known)
        return next(ranks, None)

    def _made(self, sample: _Sample) -> Item | Fault:
        best = min((rank for rank, _, _ in sample.media), default=None)
        found = [(extension, media) for rank, extension, media in sample.media if rank == best]
        if not sample.wrong and not found:
            has = ", ".join(sorted(sample.seen)[:8])
            sample.wrong = f"a sample without {WHAT[self.takes]}: it has {has}"
        if not sample.wrong and len(found) > 1:
            names = " and ".join(extension for extension, _ in found)
            sample.wrong = f"it has {names}; say which one by the input's option member"
        if sample.wrong:
            return Fault(sample.key, sample.source, sample.wrong)
        flags = tuple(sorted(sample.flags))
        columns = {name: sample.columns.get(name) for name in self._columns.names}
        return Item(sample.key, found[0][1], columns=columns, flags=flags)


class _Sample:
    """A sample so far."""

    def __init__(self, key: str, source: str) -> None:
        self.key, self.source = key, source
        self.seen: set[str] = set()
        self.media: list[tuple[int, str, Media]] = []
        self.columns: dict[str, Any] = {}
        self.flags: set[str] = set()
        self.wrong = ""


def _named(archive: TarReader) -> Iterator[tuple[str, str, Member]]:
    """Members with their keys and extensions; without what systems leave in archives."""
    for member in archive:
        found = _NAME.fullmatch(member.name)
        parts = member.name.split("/")
        if found and not any(part.startswith("__") and part.endswith("__") for part in parts):
            yield found[1], found[2].lower(), member


def _last(extension: str) -> str:
    return "." + extension.rpartition(".")[2]


def _is_media(extension: str) -> bool:
    return _last(extension) in SUFFIXES
