"""A folder, or a pattern such as clips/*.flac, of media files, each an item."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.items import Fault, Item, Local, Remote, printable
from streamenc.errors import UsageError
from streamenc.io.media.pictures.album import ENDINGS

LISTING = "listing.jsonl"
SOUND = (
    ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a",
    ".m4b", ".mka", ".mp2", ".mp3", ".mpc", ".oga", ".ogg", ".opus", ".snd", ".tta", ".voc", ".w64",
    ".wav", ".wave", ".weba", ".wma", ".wv",
)  # fmt: skip
FILMS = (
    ".3g2", ".3gp", ".asf", ".avi", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
IMAGES = (
    ".apng", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".jxl", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tif", ".tiff", ".webp", *ENDINGS,
)  # fmt: skip
SUFFIXES = SOUND + FILMS + IMAGES
# By what models take.
TAKEN = {"audio": frozenset(SOUND + FILMS), "video": frozenset(FILMS + IMAGES)}
# What systems leave in folders, beside what begins with a dot.
LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
_WILD = re.compile(r"[*?\[]")


class FolderInput(Input):
    """All media files of a folder, in the order of their names, those of folders within it too.

    Keys are their names from the folder on: "speaker3/a.flac". What is hidden is left out, and so
    are files whose endings are of no media that the models take; a pattern that ends with an ending
    of its own (*.sph) takes all that it matches. The listing is written once, into `kept`.
    """

    kind = "folder"

    def __init__(self, address: str, takes: str, kept: Path, **options: Any) -> None:
        super().__init__(address, takes, kept, **options)
        self._listing = kept / LISTING
        self._others: Counter[str] = Counter()

    def columns(self) -> pa.Schema:
        return pa.schema([])

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        shown = shown_address(self.address)
        begins = ends = count = 0
        with open(self._listing, "wb") as listing:
            for name in self._names():
                ends += listing.write(json.dumps(name).encode() + b"\n")
                count += 1
                if count == items_per_shard:
                    yield Span(shown, begins, ends, count)
                    begins, count = ends, 0
            listing.flush()
            os.fsync(listing.fileno())
        if count:
            yield Span(shown, begins, ends, count)
        if not ends:
            raise UsageError(self._nothing())

    def items(self, span: Span) -> Iterator[Item | Fault]:
        root = self._root()
        kind = Remote if filesystem.is_remote(self.address) else Local
        with open(self._listing, "rb") as listing:
            listing.seek(span.start)
            while listing.tell() < span.stop:
                name = json.loads(listing.readline())
                yield Item(printable(name), kind(root + name))

    def _root(self) -> str:
        """What stands before all names."""
        if filesystem.is_pattern(self.address):
            return filesystem.root_of(self.address)
        if filesystem.is_folder(self.address):
            return self.address.rstrip("/") + "/"
        return self.address[: self.address.rfind("/") + 1]

    def _names(self) -> Iterator[str]:
        if filesystem.is_pattern(self.address):
            last = self.address.rpartition("/")[2]
            chosen = "." in last and not _WILD.search(last.rpartition(".")[2])
            for name in filesystem.matching(self.address):
                if not any(map(_is_hidden, name.split("/"))) and (chosen or self._takes(name)):
                    yield name
        elif filesystem.is_folder(self.address):
            yield from self._within(self._root(), "", ())
        elif filesystem.exists(self.address):
            yield self.address.rpartition("/")[2]
        else:
            raise UsageError(f"there is no file or folder {shown_address(self.address)!r}")

    def _within(self, root: str, before: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        folder = root + before
        if not filesystem.is_remote(folder):
            there = os.stat(filesystem.local_name(folder))
            identity = (there.st_dev, there.st_ino)
            if identity in above:
                return  # a link that leads back
            above = (*above, identity)
        for name, is_folder in filesystem.names_in(folder):
            if _is_hidden(name):
                continue
            if is_folder:
                yield from self._within(root, f"{before}{name}/", above)
            elif self._takes(name):
                yield before + name

    def _takes(self, name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in TAKEN[self.takes]:
            return True
        self._others[suffix] += 1
        return False

    def _nothing(self) -> str:
        what = {"audio": "sound", "video": "images or films"}[self.takes]
        held = ", ".join(f"{n} of {s or 'no ending'}" for s, n in self._others.most_common(5))
        return (
            f"there is no file of {what} in {shown_address(self.address)!r}, by the endings of "
            f"their names; it holds {held or 'no file'}"
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND
