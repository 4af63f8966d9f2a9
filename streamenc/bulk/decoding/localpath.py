"""The bytes of an item as a file that FFmpeg opens."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.items import Blob, Local, Media, Region, Remote
from streamenc.errors import MediaError

COPY_BYTES = 1 << 20


@contextmanager
def local_path(media: Media, scratch: Path) -> Iterator[str]:
    """A path for as long as the block lasts.

    scratch  A folder for copies.

    Raises MediaError where there is nothing to read.
    """
    if isinstance(media, Local):
        yield media.path
        return
    if isinstance(media, Remote):
        raise MediaError(f"{media.name}: only files of this machine are read")
    with tempfile.NamedTemporaryFile(dir=scratch) as copy:
        if isinstance(media, Blob):
            copy.write(media.data)
        else:
            _copy(media, copy)
        copy.flush()
        yield copy.name


def _copy(region: Region, to: IO[bytes]) -> None:
    with filesystem.opened(region.path) as raw, filesystem.reading(region.path):
        file = gzip.GzipFile(fileobj=raw) if region.gzipped else raw
        try:
            file.seek(region.start)
            left = region.size
            while left:
                some = file.read(min(left, COPY_BYTES))
                if not some:
                    raise MediaError(f"{shown_address(region.path)} ends within {region.name}")
                to.write(some)
                left -= len(some)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MediaError(f"{region.name} cannot be unzipped: {error}") from error
