"""FileCursor: a file that is decoded once, from which items are cut one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from streamenc.bulk.decoding.localpath import local_path, naming
from streamenc.bulk.items import Media
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.incoming.beginning import HEAD_BYTES
from streamenc.io.media.incoming.formats import recognise
from streamenc.io.media.videosource import VideoSource

MAX_PIXELS = 64 * 2**20
# What is kept of what was decoded, for items that overlap.
OVERLAP_SECONDS = 10
OVERLAP_BYTES = 16 << 20


class Piece(NamedTuple):
    """A frame, and where it lies in the file.

    Attributes:
        start, stop: In samples or images from the beginning. Of sound they are counted; of images,
            and of sound whose times are samples' numbers, they are the times.
        lost_before, lost: Packets before it that cannot be decoded: until the one before it, and
            until this one.
    """

    frame: Frame
    start: int
    stop: int
    lost_before: int
    lost: int


class FileCursor:
    """Decodes a file from its beginning on, or from a later time where that is exact.

    Args:
        takes: "audio" or "video".
        begin_seconds: What lies before it is left out where the container allows that.

    Attributes:
        source: What decodes it; its `info` says what frames are.
        exact: Whether its times are samples' numbers, so that it can begin anywhere.
        at: Where what was decoded so far ends.
        ended: Whether there is no more.
        decoded: Samples or images so far.

    Raises MediaError where it cannot be opened.
    """

    def __init__(
        self, media: Media, takes: str, scratch: Path, begin_seconds: Fraction = Fraction(0)
    ) -> None:
        self.media = media
        self.ended = False
        self.decoded = 0
        self._kept: deque[Piece] = deque()
        self._kept_bytes = 0
        with ExitStack() as opening:
            self._path = opening.enter_context(local_path(media, scratch))
            self.source: ContainerSource
            self.source = (VideoSource if takes == "video" else MediaSource)(self._path)
            self.source.address = media.name
            self.source.gather()
            self.source.distrust(MAX_PIXELS)
            self.source.begin_at(begin_seconds)
            opening.callback(self.source.close_blocking)
            opening.callback(self.source.stop)
            with naming(self._path, media.name):
                self.info = self._opened()
            self._resources = opening.pop_all()
        self.exact = self.source.exact
        self._by_time = self.exact or self.info.kind == "video"
        self._first_pts = 0
        self.at = 0
        if begin_seconds and self.exact and (first := self._read()) is not None:
            self._keep(first)

    def _opened(self) -> StreamInfo:
        try:
            return self.source.open_blocking()
        except MediaError as error:
            if _holds_text(self._path) and "text" not in str(error):
                # FFmpeg went by the ending of its name.
                raise MediaError(
                    f"cannot read {self._path!r}: it holds text, not audio or video"
                ) from error
            raise

    def close(self) -> None:
        self._resources.close()

    @property
    def begins(self) -> int:
        """From where on it can still give what it decoded."""
        return self._kept[0].start if self._kept else self.at

    def pieces(self, start: int, keep: bool) -> Iterator[Piece]:
        """From the one on that holds `start`, or those before it.

        Args:
            keep: Whether the last ones are kept, for an item that overlaps with this one.
        """
        yield from [piece for piece in self._kept if piece.stop > start]
        while (piece := self._read()) is not None:
            if keep:
                self._keep(piece)
            yield piece

    def _read(self) -> Piece | None:
        before = self.source.lost
        with naming(self._path, self.media.name):
            frame = self.source.read()
        if frame is None:
            self.ended = True
            return None
        start, count = self.at, frame.data.shape[1]
        if self._by_time:
            if self.info.kind == "video" and not self.decoded:
                self._first_pts = frame.pts
            since = (frame.pts - self._first_pts) * self.info.time_base
            start = round(since * self.info.rate)
        self.decoded += count
        self.at = start + count
        return Piece(frame, start, self.at, before, self.source.lost)

    def _keep(self, piece: Piece) -> None:
        kept = self._kept
        kept.append(piece)
        self._kept_bytes += piece.frame.data.nbytes
        oldest = piece.stop - OVERLAP_SECONDS * self.info.rate
        while len(kept) > 1 and (kept[0].stop <= oldest or self._kept_bytes > OVERLAP_BYTES):
            self._kept_bytes -= kept.popleft().frame.data.nbytes


def _holds_text(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            found = recognise(file.read(HEAD_BYTES), ended=True)
    except OSError:
        return False
    return found is not None and found.name == "text"
