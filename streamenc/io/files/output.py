"""Files that sinks write: opening them, and saying what to do when that or a write fails."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
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
# What the shell has opened for us: a file there is not replaced by writing on.
_OPEN_ALREADY = re.compile(r"/dev/(std(out|err)|fd/\d+)|/proc/self/fd/\d+")


def is_taken(path: str | os.PathLike[str]) -> bool:
    """Whether something has this name that writing would replace: a file, or a link to nothing yet.

    Pipes and devices are written and never replaced, and so is what the shell has opened already
    (/dev/stdout). Of a folder, and of what cannot be looked at, opening it tells.
    """
    if _is_open_already(path):
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def open_output(path: str, overwrite: bool = True) -> BinaryIO:
    """Opens `path` for writing bytes; a file that exists is replaced if `overwrite`, else refused.

    A pipe or a device is written in any case.

    Raises OutputError.
    """
    try:
        if _is_open_already(path):
            return open(path, "ab")  # what others wrote there before stays
        if overwrite:
            return open(path, "wb")
        try:
            return open(path, "xb")
        except FileExistsError as error:
            return _opened_device(path, error)
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error


def write_output(path: str | os.PathLike[str], content: bytes, overwrite: bool = True) -> None:
    """Writes a small file at once, as `open_output` opens it. Raises OutputError."""
    name = os.fspath(path)
    try:
        with open_output(name, overwrite) as file:
            file.write(content)
    except OSError as error:
        raise output_error(name, error) from error


def _is_open_already(path: str | os.PathLike[str]) -> bool:
    return _OPEN_ALREADY.fullmatch(os.fspath(path)) is not None


def _opened_device(path: str, refusal: FileExistsError) -> BinaryIO:
    """What exists, where it is no file, without a change to what it is.

    refusal  Raised where it is a file, or a link to nothing.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise refusal from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal
    return open(descriptor, "wb")


class WholeFile:
    """A file that is useless before its end: it gets its name once it is whole, and until then has
    one of its own beside it, `PATH.RANDOM.part`.

    Where it replaces a file, it has the rights of that one, and a link stays a link.

    file  To write into.

    Raises OutputError.
    """

    def __init__(self, path: str, overwrite: bool = True) -> None:
        self.path, self._overwrite = path, overwrite
        if not overwrite and is_taken(path):
            raise output_error(path, FileExistsError(errno.EEXIST, "exists"))
        if Path(path).is_dir():
            raise output_error(path, IsADirectoryError(errno.EISDIR, "folder"))
        if Path(path).exists() and not Path(path).is_file():
            raise OutputError(f"{path!r} is a pipe or device; what is whole at its end is a file")
        self._target = os.path.realpath(path) if overwrite else path
        self._part = f"{self._target}.{secrets.token_hex(4)}.part"
        try:
            self.file: BinaryIO = open(self._part, "xb")
        except (OSError, ValueError) as error:
            raise output_error(path, error) from error

    def complete(self) -> None:
        """Closes it and gives it its name. Raises OutputError."""
        try:
            self.file.close()
            if self._overwrite:
                with suppress(FileNotFoundError):
                    os.chmod(self._part, stat.S_IMODE(os.stat(self._target).st_mode))
                os.replace(self._part, self._target)
            else:
                _rename_to_free(self._part, self._target)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error

    def discard(self) -> None:
        """Closes it and leaves nothing behind."""
        with suppress(OSError):
            self.file.close()
        Path(self._part).unlink(missing_ok=True)


def _rename_to_free(path: str, name: str) -> None:
    """Gives a file another name, if nothing has that yet. Raises FileExistsError, OSError."""
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is claimed by an empty file
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(path, name)
    else:
        os.unlink(path)


def output_error(path: str, error: OSError | ValueError) -> OutputError:
    """The OutputError that says in words what `error` means for whoever writes `path`."""
    folder = Path(path).parent
    if isinstance(error, ValueError):
        cure = f"no file has such a name ({error})"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
        cure = f"there is no folder {str(folder)!r}; create it first (mkdir -p)"
    else:
        cure = CURES.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {path!r}: {cure}")
