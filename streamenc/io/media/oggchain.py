"""Chained Ogg: streams one after another in one file, which FFmpeg reads while they are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import av

# RFC 3533, 6: a page begins with these, its version, and flags; 2 is the first page of a stream.
CAPTURE = b"OggS"
HEADER_BYTES = 27
FIRST_PAGE = 2
BLOCK_BYTES = 2**20
# Said of what is no file, in which the next link could be looked for.
OTHER_FORM = (
    "goes on with sound of another rate, other channels or another codec (a chained Ogg), which "
    "FFmpeg follows in a file alone: save it as one first"
)


class OggChain:
    """The links of an Ogg file, of which FFmpeg reads on only into those of the same form."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins = 0  # the link that is open, in bytes

    @classmethod
    def of(cls, container: Any) -> Self | None:
        """The chain of a container of PyAV; None where it is no Ogg file."""
        name: str = container.name
        if container.format.name != "ogg" or not name.startswith("file:"):
            return None
        path = Path(name.removeprefix("file:"))
        return cls(path) if path.is_file() else None

    def open_next(self, position: int) -> Any:
        """PyAV's container of the next link behind `position`, in bytes of the one that is open,
        and of all that follows it; None where there is none.

        Raises av.error.FFmpegError where what is there cannot be opened.
        """
        begins = self._next_beginning(self._begins + position)
        if begins is None:
            return None
        self._begins = begins
        return av.open(
            f"subfile,,start,{begins},end,0,,:file:{self._path}", metadata_errors="replace"
        )

    def _next_beginning(self, position: int) -> int | None:
        """Of the first page of a stream behind `position`, in bytes of the file."""
        with self._path.open("rb") as file:
            file.seek(position)
            kept = b""
            while block := file.read(BLOCK_BYTES):
                data, at = kept + block, -1
                origin = file.tell() - len(data)
                while (at := data.find(CAPTURE, at + 1)) >= 0 and at + HEADER_BYTES <= len(data):
                    version, flags = data[at + 4], data[at + 5]
                    number = int.from_bytes(data[at + 18 : at + 22], "little")
                    if origin + at > position and (version, flags, number) == (0, FIRST_PAGE, 0):
                        return origin + at
                kept = data[1 - HEADER_BYTES :]
        return None
