"""Shard: rows as one file, which has its name only when it is whole; what all formats share."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa

from streamenc.bulk.items import Row
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import output_error

READ_BYTES = 1 << 20


class Written(NamedTuple):
    """A file of a set.

    Attributes:
        name: Within the set's folder.
        bytes, sha256: Of what is in it.
    """

    name: str
    bytes: int
    sha256: str


class Shard(ABC):
    """Rows of a part as one file, the same bytes for the same rows.

    Args:
        path: Where it is written: in a folder of its own for what is not whole yet.
        models: Whose tokens each row has.
        columns: What is passed through.

    Attributes:
        suffix: Of its file's name: ".parquet".
    """

    suffix: ClassVar[str]

    def __init__(self, path: Path, models: Sequence[ModelFacts], columns: pa.Schema) -> None:
        self.path, self.models, self.columns = path, models, columns

    @abstractmethod
    def write(self, row: Row) -> None:
        """Raises OutputError where the disk is full."""

    @abstractmethod
    def complete(self) -> None:
        """Ends the file, which is then whole, but nobody's yet. Raises OutputError."""

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
