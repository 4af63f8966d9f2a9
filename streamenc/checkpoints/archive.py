"""Zip files of a pickle and one file for each tensor's storage, as torch writes them.

Everything is bounded before it is read: sizes come from the zip's directory, compressed entries are
refused, and no tensor may reach beyond its storage.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamenc.checkpoints.unpickling import (
    MAX_PICKLE_BYTES,
    OddTensor,
    PickledTensors,
    Storage,
    StoredTensor,
    Unpickler,
)

MAX_ENTRIES = 100_000
# What an archive of so many entries lists them in; zipfile reads all of it before it counts them.
MAX_DIRECTORY_BYTES = 8 << 20
_HEADER_BYTES = 30


class _Directory(io.BufferedReader):
    """A file of which only the list at its end is read, a bounded part of it at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        limit = MAX_DIRECTORY_BYTES + 1
        content = super().read(limit if size is None or not 0 <= size < limit else size)
        if len(content) >= limit:
            raise zipfile.BadZipFile(f"it lists its entries in more than {limit - 1} bytes")
        return content


class Archive(PickledTensors):
    """Named tensors of an archive, each read when it is asked for.

    foreign  See Unpickler.
    tensors  Finds the tensors by name in what the archive's pickle describes.

    Raises pickle.UnpicklingError, zipfile.BadZipFile or OSError for what is no such archive.
    """

    def __init__(
        self,
        path: Path,
        foreign: Callable[[str, str], Any],
        tensors: Callable[[Any], Mapping[str, StoredTensor | OddTensor]],
    ) -> None:
        self._path = path
        with _Directory(io.FileIO(path)) as directory, zipfile.ZipFile(directory) as file:
            entries = file.infolist()
        if len(entries) > MAX_ENTRIES:
            raise pickle.UnpicklingError(f"{len(entries)} entries; wanted at most {MAX_ENTRIES}")
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if name.count("/") == 1]
        pickles = [name for name in pickles if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it has no data.pkl, so it is no archive of tensors")
        self._folder = pickles[0].partition("/")[0]
        order = f"{self._folder}/byteorder"
        if order in self._entries and self._read(order, len("little")) != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian; wanted little-endian ones")
        content = self._read(pickles[0], MAX_PICKLE_BYTES)
        self._root = Unpickler(content, foreign).load()
        self._tensors = tensors(self._root)

    def _content(self, storage: Storage) -> bytes:
        entry = f"{self._folder}/data/{storage.key}"
        content = self._read(entry, storage.bytes)
        if len(content) != storage.bytes:
            raise ValueError(f"{entry} has {len(content)} bytes; {storage.bytes} were announced")
        return content

    def _read(self, name: str, most: int) -> bytes:
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"{name} is missing in the archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
            raise pickle.UnpicklingError(
                f"{name} has {entry.file_size} bytes, {entry.compress_size} in the file; wanted at "
                f"most {most}, uncompressed"
            )
        # Read here, as zipfile refuses archives that were written without checksums.
        with self._path.open("rb") as file:
            if not 0 <= entry.header_offset <= os.fstat(file.fileno()).st_size - entry.file_size:
                raise zipfile.BadZipFile(f"{name} reaches beyond the end of the file")
            file.seek(entry.header_offset)
            header = file.read(_HEADER_BYTES)
            if len(header) == _HEADER_BYTES:
                file.seek(sum(struct.unpack("<HH", header[-4:])), io.SEEK_CUR)
            content = file.read(entry.file_size)
        if len(content) != entry.file_size or (entry.CRC and zlib.crc32(content) != entry.CRC):
            raise zipfile.BadZipFile(f"{name} is damaged: its checksum is another")
        return content
