"""MediaReader: the frames of an item, from where it begins to its end, once for all models."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from streamenc.bulk.decoding.filecursor import FileCursor, Piece
from streamenc.bulk.items import Item
from streamenc.errors import InputError, MediaError
from streamenc.graph.frames import Frame, StreamInfo

# Beyond what is decoded sooner than a file is opened again.
JUMP_SECONDS = 10
# By how much an item may pass the end of its file: manifests round, and count what an encoder put
# around the sound, which is left out here.
ROUNDED_SECONDS, PADDED_SECONDS = 0.01, 0.1


class Reading:
    """One item being read.

    Attributes:
        info: What its frames are.
        samples: Samples or images that were given so far.
        flags: What is peculiar about it so far.
        complete: Whether all of it was given.

    Raises MediaError where it has no such channel, InputError where no item can lie so.
    """

    def __init__(self, cursor: FileCursor, item: Item, damaged: bool) -> None:
        self._cursor, self._item, self._damaged = cursor, item, damaged
        self._start, self._stop = extent(item, cursor.info.rate)
        self.info: StreamInfo = self._with_channels(cursor.info)
        self.samples = 0
        self.flags: list[str] = []
        self.complete = False
        self._lost = self._lost_before = self._missing = 0

    @property
    def rate(self) -> float:
        return float(self.info.rate)

    def frames(self) -> Iterator[Frame]:
        """Raises MediaError where it is known not to be whole, behind its last frame; InputError
        where it passes the end of its file."""
        start, stop, is_sound = self._start, self._stop, self.info.kind == "audio"
        follows = start
        for piece in self._cursor.pieces(start, self._item.duration_seconds is not None):
            if stop is not None and piece.start >= stop:
                break
            first, last = max(0, start - piece.start), piece.stop - piece.start
            if stop is not None and is_sound:
                last = min(last, stop - piece.start)
            if first < last:
                self._watch(piece, piece.start + first, follows)
                follows = piece.start + last
                self.samples += last - first
                yield self._cut(piece.frame, first, last)
            if stop is not None and is_sound and piece.stop >= stop:
                break
        if stop is not None and self._cursor.exact and not self._cursor.ended:
            self._missing += stop - follows
        self.complete = True
        self._check()

    def _watch(self, piece: Piece, here: int, wanted: int) -> None:
        if self._cursor.exact:
            self._missing += max(0, here - wanted)
            if not self.samples:
                self._lost_before = piece.lost_before
        self._lost = piece.lost - self._lost_before
        if piece.frame.discontinuity and self.samples and "gaps" not in self.flags:
            self.flags.append("gaps")

    def _cut(self, frame: Frame, first: int, last: int) -> Frame:
        if self._item.channels:
            frame = frame.with_(data=np.ascontiguousarray(frame.data[list(self._item.channels)]))
        if last - first == frame.data.shape[1]:
            return frame
        return frame.with_(
            data=frame.data[:, first:last], pts=frame.pts + first, duration=last - first
        )

    def _check(self) -> None:
        cursor, start, stop = self._cursor, self._start, self._stop
        why = ""
        if cursor.ended:
            why = cursor.source.broken
            self._lost = cursor.source.lost - self._lost_before
        if not why and self._lost:
            why = f"{self._lost} packets of it cannot be decoded: it is damaged"
        if not why and self._missing:
            why = f"{self._missing} samples within it are missing: it is damaged"
        if why and not self._damaged:
            raise MediaError(why)
        if why:
            self.flags.append("damaged")
        elif cursor.ended:
            self._check_end(start, stop)

    def _check_end(self, start: int, stop: int | None) -> None:
        ends = self._cursor.at
        if start and start >= ends:
            raise InputError(
                f"the item begins at {self._item.offset_seconds:g} s, and its file ends at "
                f"{ends / self.rate:g} s"
            )
        allowed = ROUNDED_SECONDS if self._cursor.exact else PADDED_SECONDS
        if stop is not None and stop - ends > max(1, allowed * self.rate):
            raise InputError(
                f"the item ends at {stop / self.rate:g} s, and its file at {ends / self.rate:g} s"
            )

    def _with_channels(self, info: StreamInfo) -> StreamInfo:
        channels = self._item.channels
        if not channels or info.kind != "audio":
            return info
        there = info.shape[0] or 0
        if min(channels) < 0 or max(channels) >= there:
            raise MediaError(
                f"the item is of channel {max(channels, key=abs)}, counted from 0; its file has "
                f"{there}"
            )
        return replace(info, shape=(len(channels), None))


class MediaReader:
    """Opens items one after the other.

    A file of which the next item is a segment that follows, or overlaps by a few seconds, is
    decoded on from where the item before it ended.

    Args:
        takes: "audio" or "video".
        scratch: A folder for copies of what is no file.
        damaged: Whether what is known not to be whole is read nevertheless, and flagged.

    Attributes:
        decoded: Samples or images that were decoded so far.
    """

    def __init__(self, takes: str, scratch: Path, damaged: bool = False) -> None:
        self._takes, self._scratch, self._damaged = takes, scratch, damaged
        self._lock = threading.Lock()
        self._kept: FileCursor | None = None
        self.decoded = 0

    @contextmanager
    def open(self, item: Item) -> Iterator[Reading]:
        """Raises MediaError, and InputError where no item can lie so in a file."""
        extent(item, Fraction(1))
        cursor = self._cursor(item)
        decoded = cursor.decoded
        reading = None
        try:
            reading = Reading(cursor, item, self._damaged)
            yield reading
        finally:
            self.decoded += cursor.decoded - decoded
            if reading is not None and reading.complete and not cursor.ended:
                self._swap(cursor)
            else:
                cursor.close()

    def close(self) -> None:
        """Ends a file that waits for its next segment; what is opened later is read as before."""
        self._swap(None)

    def _swap(self, cursor: FileCursor | None) -> None:
        with self._lock:
            before, self._kept = self._kept, cursor
        if before is not None:
            before.close()

    def _cursor(self, item: Item) -> FileCursor:
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            if kept.media == item.media and self._leads_to(kept, item):
                return kept
            kept.close()
        if item.offset_seconds > JUMP_SECONDS and (later := self._begun_later(item)) is not None:
            return later
        return FileCursor(item.media, self._takes, self._scratch)

    def _begun_later(self, item: Item) -> FileCursor | None:
        """A cursor that left out what lies before an item; None where that cannot be."""
        begin = Fraction(item.offset_seconds)
        try:
            cursor = FileCursor(item.media, self._takes, self._scratch, begin)
        except MediaError:
            return None  # as from a place behind the end: what it is, a look at the whole says
        if cursor.begins <= extent(item, cursor.info.rate)[0]:
            return cursor
        cursor.close()
        return None

    @staticmethod
    def _leads_to(cursor: FileCursor, item: Item) -> bool:
        start, _ = extent(item, cursor.info.rate)
        near = start - cursor.at <= JUMP_SECONDS * cursor.info.rate
        return cursor.begins <= start and (near or not cursor.exact)


def extent(item: Item, rate: Fraction) -> tuple[int, int | None]:
    """From where to where an item lies in its file, in samples or images; None for its end.

    Raises InputError where it says no times.
    """
    begins, lasts = item.offset_seconds, item.duration_seconds
    if not math.isfinite(begins) or begins < 0:
        raise InputError(f"the item begins at {begins} s; wanted is a number from 0 on")
    if lasts is None:
        return round(begins * rate), None
    if not math.isfinite(lasts) or lasts <= 0:
        raise InputError(f"the item lasts {lasts} s; wanted is a number above 0")
    return round(begins * rate), round((begins + lasts) * rate)
