"""The bytes of an item as a file that FFmpeg opens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            _copy(media, copy.fileno())
        copy.flush()
        yield copy.name


def _copy(region: Region, to: int) -> None:
    with open(region.path, "rb") as file:
        at, left = region.start, region.size
        while left:
            some = os.pread(file.fileno(), min(left, COPY_BYTES), at)
            if not some:
                raise MediaError(f"{region.path} ends within {region.name}")
            os.write(to, some)
            at, left = at + len(some), left - len(some)
