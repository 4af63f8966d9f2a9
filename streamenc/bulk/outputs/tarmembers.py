"""Tar files of which the bytes follow from their members alone: without times and owners."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.io.files.output import open_output, output_error


class TarMembers:
    """Writes a tar file, member by member; long names, and such as are not of ASCII, as POSIX has
    them since 2001.

    Raises OutputError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_output(str(path))

    def add(self, name: str, content: bytes) -> None:
        """Raises OutputError."""
        member = tarfile.TarInfo(name)  # of time 0 and nobody
        member.size = len(content)
        header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        self._write(header + content + bytes(-len(content) % tarfile.BLOCKSIZE))

    def complete(self) -> None:
        """Raises OutputError."""
        ended = self._file.tell() + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -ended % tarfile.RECORDSIZE))
        try:
            self._file.close()
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise output_error(str(self.path), error) from error

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as an `.npy` file, whichever way it lies in memory."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def member_name(key: str) -> str:
    """A key as a member's name without a dot, for extensions come behind the first one;
    `urllib.parse.unquote` gives the key again.

    In percents are dots, percents, backslashes, control characters, slashes without a name on both
    sides, and an underscore at the beginning, by which WebDataset knows what is no sample.
    """
    names = [_quoted(part) for part in key.split("/")]
    if names[0].startswith("_"):
        names[0] = f"%5F{names[0][1:]}"
    made = names[0]
    for before, name in pairwise(names):
        made += f"/{name}" if before and name else f"%2F{name}"
    return made


def _quoted(part: str) -> str:
    controls = range(32)
    return "".join(
        f"%{ord(letter):02X}" if letter in ".%\\\x7f" or ord(letter) in controls else letter
        for letter in part
    )
