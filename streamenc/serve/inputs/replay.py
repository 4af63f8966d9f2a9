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
    "was flushed: it is not all kept, and cannot be decoded again"
)


class Kept:
    """Pieces of compressed input since a decoder was new, up to 8 MiB; beyond that, the last ones.

    Args:
        last: How many are kept then, for a decoder that finds its way from anywhere.

    Attributes:
        pieces: As they came.
        whole: Whether none was given up.
    """

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self.clear()

    def clear(self) -> None:
        """A new decoder."""
        self.pieces: list[bytes] = []
        self.whole = True
        self._nbytes = 0

    def add(self, piece: bytes) -> None:
        self._nbytes += len(piece)
        self.pieces.append(piece)
        if self._nbytes > MAX_KEPT_BYTES:
            self.give_up()
        elif not self.whole:
            self._keep_last()

    def give_up(self) -> None:
        """From now on, only the last ones are kept."""
        self.whole = False
        self._nbytes = 0
        self._keep_last()

    def _keep_last(self) -> None:
        del self.pieces[: max(0, len(self.pieces) - self._last)]

    def restore(self, pieces: Iterable[bytes], whole: bool = True) -> None:
        """Raises SnapshotError."""
        self.clear()
        for piece in pieces:
            self.add(piece)
        if whole and not self.whole:
            raise damaged("more compressed input than is kept")
        self.whole = whole
