"""The bytes of an item as a file that FFmpeg opens: never over a network."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.items import Blob, Local, Media, Region, Remote, printable
from streamenc.errors import MediaError, UsageError
from streamenc.io.files.output import output_error

COPY_BYTES = 1 << 20
# Up to here a copy is kept in memory, beyond it in a file without a name.
MEMORY_BYTES = 64 << 20
# What a store may give for one file: one that never ends would fill the disk.
MAX_BYTES = 256 << 30
PAUSES_SECONDS = (0.5, 2.0)
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@contextmanager
def local_path(media: Media, scratch: Path) -> Iterator[str]:
    """A path for as long as the block lasts; copies are gone behind it, also after a crash.

    Its ending is that of the item's name, as FFmpeg goes by endings where bytes leave a doubt.

    Args:
        scratch: A folder for what has no place in memory.

    Raises MediaError where there is nothing to read, and OutputError where there is no space left
    for a copy; see `naming` for what is raised within.
    """
    if isinstance(media, Local):
        yield _checked(media)
        return
    with _Copy(scratch) as copy:
        if isinstance(media, Blob):
            copy.write(media.data)
        elif isinstance(media, Region):
            _copy_region(media, copy)
        else:
            _copy_remote(media, copy)
        suffix = os.path.splitext(media.name)[1]
        with copy.path(suffix if _SUFFIX.fullmatch(suffix) else "") as path:
            yield path


@contextmanager
def naming(path: str, name: str) -> Iterator[None]:
    """Has errors name the item, and not the path that stands for it."""
    try:
        yield
    except (MediaError, UsageError) as error:
        said = str(error)
        for form in (path, repr(path)[1:-1]):
            said = said.replace(form, name)
        raise type(error)(printable(said)) from error


def _checked(media: Local) -> str:
    """As an absolute path, which is none of FFmpeg's other addresses."""
    path = os.path.abspath(filesystem.local_name(media.path))
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return path  # what opens it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MediaError(f"{media.name!r} is no file, but a pipe, a socket or a device")
    return path


class _Copy:
    """Bytes that are written here, in memory or in a file without a name."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = os.path.abspath(scratch)
        self._file: IO[bytes] = open(os.memfd_create("item"), "w+b", buffering=0)
        self._in_memory = True
        self.bytes = 0

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Raises OutputError."""
        self.bytes += len(data)
        with self._words():
            if self._in_memory and self.bytes > MEMORY_BYTES:
                self._move()
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.bytes = 0

    @contextmanager
    def path(self, suffix: str) -> Iterator[str]:
        link = os.path.join(self._scratch, f"item-{secrets.token_hex(8)}{suffix}")
        with self._words():
            os.symlink(f"/proc/self/fd/{self._file.fileno()}", link)
        try:
            yield link
        finally:
            os.unlink(link)

    @contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._scratch, error) from error

    def _move(self) -> None:
        larger = tempfile.TemporaryFile(dir=self._scratch, buffering=0)
        self._file.seek(0)
        while some := self._file.read(COPY_BYTES):
            larger.write(some)
        self._file.close()
        self._file, self._in_memory = larger, False


def _copy_region(region: Region, to: _Copy) -> None:
    with filesystem.opened(region.path) as raw, filesystem.reading(region.path):
        file = gzip.GzipFile(fileobj=raw) if region.gzipped else raw
        try:
            file.seek(region.start)
            left = region.size
            while left:
                some = file.read(min(left, COPY_BYTES))
                if not some:
                    archive = printable(shown_address(region.path))
                    raise MediaError(f"{archive} ends within {region.name}")
                to.write(some)
                left -= len(some)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MediaError(f"{region.name} cannot be unzipped: {error}") from error


def _copy_remote(remote: Remote, to: _Copy) -> None:
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            _fetch(remote, to)
            return
        except MediaError as error:
            if pause_seconds is None or isinstance(error.__cause__, PERMANENT):
                raise
        to.clear()
        time.sleep(pause_seconds)


# What another attempt does not change.
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError)


def _fetch(remote: Remote, to: _Copy) -> None:
    with filesystem.opened(remote.url) as file, filesystem.reading(remote.url):
        size = getattr(file, "size", None)
        while some := file.read(COPY_BYTES):
            to.write(some)
            if to.bytes > MAX_BYTES:
                raise MediaError(f"{remote.name} has more than the {MAX_BYTES} bytes that are read")
        if size is not None and to.bytes < size:
            raise MediaError(f"{remote.name} broke off after {to.bytes} of its {size} bytes")
