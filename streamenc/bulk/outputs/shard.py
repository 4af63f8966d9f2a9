"""Shard: rows as files, which have their names only when all are whole; what all formats share."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import pyarrow as pa

from streamenc.bulk.items import Row
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import output_error

READ_BYTES = 1 << 20


class Written(msgspec.Struct, frozen=True):
    """A file of a set.

    Attributes:
        name: Within the set's folder.
        bytes, sha256: Of what is in it.
    """

    name: str
    bytes: int
    sha256: str


class Shard(ABC):
    """Rows of a part as one file or several, the same bytes for the same rows.

    Args:
        folder: Where they are written: one of its own, for what is not whole yet.
        part: The number of the part, by which its files are named.
        models: Whose tokens each row has.
        columns: What is passed through.

    Attributes:
        suffix: Of a file's name: ".parquet".
        paths: Of its files, in the order in which they get their place in the set.
    """

    suffix: ClassVar[str]

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        self.models, self.columns = models, columns
        self.paths = [folder / name for name in self.names(part, models)]

    @classmethod
    def names(cls, part: int, models: Sequence[ModelFacts]) -> list[str]:
        """Of the files of a part."""
        return [f"{part:06d}{cls.suffix}"]

    @abstractmethod
    def write(self, row: Row) -> None:
        """Raises OutputError where the disk is full."""

    @abstractmethod
    def complete(self) -> None:
        """Ends the files, which are then whole, but nobody's yet. Raises OutputError."""

    @abstractmethod
    def discard(self) -> None:
        """Leaves nothing behind."""


def publish(path: Path, folder: Path, name: str) -> Written:
    """Gives a whole file its name in a set, for good: on disk, then renamed. Raises OutputError."""
    target = folder / name
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while some := file.read(READ_BYTES):
                digest.update(some)
                size += len(some)
            os.fsync(file.fileno())
        os.replace(path, target)
        sync_folder(target.parent)
    except OSError as error:
        raise output_error(str(target), error) from error
    return Written(name, size, digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Has the system write down which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
