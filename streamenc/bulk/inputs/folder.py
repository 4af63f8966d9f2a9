"""A folder or glob of media files, each an item."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.items import Fault, Item, Local
from streamenc.errors import UsageError

SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".mp4", ".mkv", ".w64")


class FolderInput(Input):
    """All media files of a folder, in the order of their names, those of folders within it too."""

    kind = "folder"

    def __init__(self, address: str, takes: str, kept: Path, **options: Any) -> None:
        super().__init__(address, takes, kept, **options)
        self._root = Path(address) if os.path.isdir(address) else Path(address).parent

    def columns(self) -> pa.Schema:
        return pa.schema([])

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        count = len(self._files())
        for start in range(0, count, items_per_shard):
            stop = min(count, start + items_per_shard)
            yield Span(self.address, start, stop, stop - start)

    def items(self, span: Span) -> Iterator[Item | Fault]:
        for path in self._files()[span.start : span.stop]:
            yield Item(os.path.relpath(path, self._root), Local(path))

    def _files(self) -> list[str]:
        pattern = str(self._root / "**" / "*") if os.path.isdir(self.address) else self.address
        found = glob.glob(pattern, recursive=True)
        files = sorted(path for path in found if Path(path).suffix.lower() in SOUND)
        if not files:
            raise UsageError(f"there is no media file in {self.address!r}")
        return files
