"""Files that sinks write: opening them, and saying what to do when that or a write fails."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from streamenc.errors import OutputError

CURES = {
    errno.ENOSPC: "the disk is full; what was written before is complete",
    errno.EDQUOT: "the disk quota is used up; what was written before is complete",
    errno.EFBIG: "the file is larger than this file system allows",
    errno.EISDIR: "it is a folder; name a file in it",
    errno.EACCES: "permission denied; choose a place that you may write to",
    errno.EPERM: "permission denied; choose a place that you may write to",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EEXIST: "it exists already; pass overwrite=true, or choose another name",
}


def open_output(path: str, overwrite: bool = True) -> BinaryIO:
    """Opens `path` for writing bytes; a file that exists is replaced if `overwrite`, else refused.

    Raises OutputError.
    """
    try:
        return open(path, "wb" if overwrite else "xb")
    except OSError as error:
        raise output_error(path, error) from error


class WholeFile:
    """A file that is useless before its end: written as `PATH.part`, and `PATH` once it is whole.

    file  To write into.

    Raises OutputError.
    """

    def __init__(self, path: str, overwrite: bool = True) -> None:
        self.path, self._part = path, f"{path}.part"
        if not overwrite and Path(path).exists():
            raise output_error(path, FileExistsError(errno.EEXIST, "exists"))
        if Path(path).is_dir():
            raise output_error(path, IsADirectoryError(errno.EISDIR, "folder"))
        if Path(path).exists() and not Path(path).is_file():
            raise OutputError(f"{path!r} is a pipe or device; what is whole at its end is a file")
        self.file = open_output(self._part)

    def complete(self) -> None:
        """Closes it and gives it its name. Raises OutputError."""
        try:
            self.file.close()
            os.replace(self._part, self.path)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error

    def discard(self) -> None:
        """Closes it and leaves nothing behind."""
        with suppress(OSError):
            self.file.close()
        Path(self._part).unlink(missing_ok=True)


def output_error(path: str, error: OSError) -> OutputError:
    """The OutputError that says in words what `error` means for whoever writes `path`."""
    folder = Path(path).parent
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
        cure = f"there is no folder {str(folder)!r}; create it first (mkdir -p)"
    else:
        cure = CURES.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {path!r}: {cure}")
