"""TarReader: the members of a tar, one after the other, in memory that no archive makes grow."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, NamedTuple, cast

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.items import Blob, Media, Region
from streamenc.errors import MediaError

# Of what stands before one member: names, and what else an archive says of it.
MAX_HEADER_BYTES = 1 << 20
MAX_GLOBAL = 1000  # keywords of pax headers that hold for all members
# Larger ones are read from where they lie, once they are decoded.
MAX_BLOB_BYTES = 32 * 2**20
MAX_TAR_BYTES = 1 << 43  # further on, file systems do not seek
GZIP = b"\x1f\x8b"


class DamagedTar(MediaError):
    """What an archive holds is not whole; what came before is."""


class Member(NamedTuple):
    """A member that is a file.

    Attributes:
        start, size: Its bytes within the archive, once that is unpacked.
        plain: Whether they are there as they are: not a link, and without holes.
    """

    name: str
    start: int
    size: int
    plain: bool


class TarReader:
    """Reads an archive from its beginning on, of this machine or of a store.

    Nothing is ever written or followed: names are but words. Headers are read as `tarfile` reads
    them, so that long names, pax and GNU headers are known; unlike there, an archive that does not
    end as it should is told from one that does.

    Attributes:
        address: As it was opened.
        gzipped: Whether it is, by its first bytes.

    Raises MediaError where it cannot be opened.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._raw = filesystem.opened(address)
        with filesystem.reading(address):
            self.gzipped = self._raw.read(len(GZIP)) == GZIP
            self._raw.seek(0)
        unzipped = gzip.GzipFile(fileobj=self._raw) if self.gzipped else self._raw
        self._file = cast(BinaryIO, unzipped)
        self._headers = _Headers(self._file, self._guarded)
        self._read_to = 0

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def __enter__(self) -> TarReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Member]:
        """Members in their order; directories and devices are none.

        Raises DamagedTar behind the last one that is whole, and MediaError where a store fails.
        """
        self._headers.offset = 0
        while True:
            info = self._next()
            if info is None:
                return
            at = info.offset_data
            if info.isreg() or info.islnk() or info.issym():
                plain = info.isreg() and not info.issparse()
                yield Member(info.name, at, info.size, plain)
            if info.isreg() and not info.issparse():
                self.check(Member(info.name, at, info.size, True))

    def read(self, member: Member) -> bytes:
        """What a member holds. It is the newest one, and plain. Raises as iterating does."""
        with self._guarded():
            self._file.seek(member.start)
            content = self._file.read(member.size)
        self._read_to = member.start + len(content)
        if len(content) < member.size:
            raise self._cut(member.name)
        return content

    def media(self, member: Member) -> Media:
        """The newest member, which is plain, for whoever decodes it. Raises as iterating does.

        What has to be fetched or unzipped comes into memory, unless it is large; all else stays
        where it is.
        """
        name = f"{shown_address(self.address)}/{member.name}"
        elsewhere = self.gzipped or filesystem.is_remote(self.address)
        if elsewhere and member.size <= MAX_BLOB_BYTES:
            return Blob(self.read(member), name)
        self.check(member)
        return Region(self.address, member.start, member.size, name, self.gzipped)

    def check(self, member: Member) -> None:
        """Raises DamagedTar where the archive ends before the newest member does."""
        end = member.start + member.size
        if not member.size or self._read_to >= end:
            return
        with self._guarded():
            self._file.seek(end - 1)
            last = self._file.read(1)
        if not last:
            raise self._cut(member.name)
        self._read_to = end

    def _next(self) -> tarfile.TarInfo | None:
        headers = self._headers
        begin = headers.offset
        try:
            headers.begin()
            info = tarfile.TarInfo.fromtarfile(headers)  # type: ignore[arg-type]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            lacks = "lacks the zeros that end an archive: it may have been cut off"
            raise DamagedTar(f"{self._shown} {lacks if begin else 'is empty'}") from None
        except _CutShort:
            raise DamagedTar(f"{self._shown} ends within a header, at byte {begin:,}") from None
        except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
            raise self._damaged(begin, str(error)) from error
        if info.size < 0 or not begin < headers.offset <= MAX_TAR_BYTES:
            raise self._damaged(begin, f"a size of {info.size} bytes")
        return info

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with filesystem.reading(self.address):
            try:
                yield
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DamagedTar(f"{self._shown} cannot be unzipped to its end: {error}") from error

    def _damaged(self, at: int, why: str) -> DamagedTar:
        if not at:
            return DamagedTar(f"{self._shown} is no tar: {why}")
        return DamagedTar(f"{self._shown}: the header at byte {at:,} is damaged: {why}")

    def _cut(self, name: str) -> DamagedTar:
        return DamagedTar(f"{self._shown} ends within {name!r}: it was cut off")

    @property
    def _shown(self) -> str:
        return repr(shown_address(self.address))


class _CutShort(Exception):
    """A header is not all there."""


class _Headers:
    """An archive as `TarInfo.fromtarfile` reads a header of it: with a bound to each read.

    Attributes:
        offset: Where the next header begins, once one was read.
    """

    encoding = "utf-8"
    # Names that are no UTF-8 become text that is, and stay different.
    errors = "backslashreplace"

    def __init__(self, file: BinaryIO, guarded: Callable[[], AbstractContextManager[None]]) -> None:
        self._file, self._guarded = file, guarded
        self.fileobj = self
        self.offset = 0
        self.pax_headers: dict[str, str] = {}
        self._left = 0
        self._first = True

    def begin(self) -> None:
        if len(self.pax_headers) > MAX_GLOBAL:
            raise tarfile.ReadError("it says too much of all members")
        self._left, self._first = MAX_HEADER_BYTES, True
        self.seek(self.offset)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._guarded():
            return self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"it has more than {MAX_HEADER_BYTES:,} bytes")
        self._left -= size
        with self._guarded():
            content = self._file.read(size)
        if len(content) < size and (content or not self._first):
            raise _CutShort
        self._first = False
        return content
