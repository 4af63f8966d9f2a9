"""Replay: compressed input that is kept, as decoders have no state that could be written down.

A decoder that is given the same bytes again gives the same again, bit for bit. What it gave before
is left out, and it goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamenc.serve.inputs.inputbase import damaged

MAX_KEPT_BYTES = 8 * 2**20
TOO_LONG = (
    f"more than {MAX_KEPT_BYTES // 2**20} MiB of compressed input came since the stream began, or "
    "was flushed: it is not kept, and cannot be decoded again"
)


class Kept:
    """Pieces of compressed input since a decoder was new, up to 8 MiB.

    Attributes:
        pieces: As they came.
        whole: Whether none was given up.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A new decoder."""
        self.pieces: list[bytes] = []
        self.whole = True
        self._nbytes = 0

    def add(self, piece: bytes) -> None:
        if not self.whole:
            return
        self._nbytes += len(piece)
        self.pieces.append(piece)
        if self._nbytes > MAX_KEPT_BYTES:
            self.give_up()

    def give_up(self) -> None:
        """Keeps nothing any more."""
        self.pieces, self.whole = [], False

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Raises SnapshotError."""
        self.clear()
        for piece in pieces:
            self.add(piece)
        if not self.whole:
            raise damaged("more compressed input than is kept")
