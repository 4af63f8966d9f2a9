"""MediaReader: the frames of an item, from where it begins to its end, once for all models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamenc.bulk.decoding.localpath import local_path
from streamenc.bulk.items import Item
from streamenc.errors import InputError, MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.videosource import VideoSource

MAX_PIXELS = 64 * 2**20


class Reading:
    """One item being read.

    Attributes:
        info: What its frames are.
        samples: Samples or images that were given so far.
        flags: What is peculiar about it so far.
    """

    def __init__(self, source: ContainerSource, item: Item, damaged: bool) -> None:
        self._source, self._item, self._damaged = source, item, damaged
        self.info: StreamInfo = source.open_blocking()
        self.samples = 0
        self.flags: list[str] = []

    @property
    def rate(self) -> float:
        return float(self.info.rate)

    def frames(self) -> Iterator[Frame]:
        """Raises MediaError where the file is known not to be whole, behind its last frame."""
        rate, item = self.info.rate, self._item
        at, start = 0, round(item.offset_seconds * rate)
        lasts = item.duration_seconds
        stop = None if lasts is None else round((item.offset_seconds + lasts) * rate)
        while stop is None or at < stop:
            frame = self._source.read()
            if frame is None:
                self._check_whole(at, stop)
                return
            came = frame.data.shape[1]
            first, last = max(0, start - at), came if stop is None else min(came, stop - at)
            at += came
            if first >= last:
                continue
            if frame.discontinuity and self.samples and "gaps" not in self.flags:
                self.flags.append("gaps")
            self.samples += last - first
            yield frame if last - first == came else frame.with_(data=frame.data[:, first:last])

    def _check_whole(self, at: int, stop: int | None) -> None:
        why = self._source.broken
        if not why and self._source.lost:
            why = f"{self._source.lost} packets of it cannot be decoded"
        if why and not self._damaged:
            raise MediaError(why)
        if why:
            self.flags.append("damaged")
        elif stop is not None and at < stop:
            raise InputError(
                f"the item ends at {stop / self.rate:g} s, and the file at {at / self.rate:g} s"
            )


class MediaReader:
    """Opens items one after the other.

    Args:
        takes: "audio" or "video".
        scratch: A folder for copies of what is no file.
        damaged: Whether what is known not to be whole is read nevertheless, and flagged.
    """

    def __init__(self, takes: str, scratch: Path, damaged: bool = False) -> None:
        self._takes, self._scratch, self._damaged = takes, scratch, damaged

    @contextmanager
    def open(self, item: Item) -> Iterator[Reading]:
        """Raises MediaError."""
        with local_path(item.media, self._scratch) as path:
            source = VideoSource(path) if self._takes == "video" else MediaSource(path)
            source.gather()
            source.distrust(MAX_PIXELS)
            try:
                yield Reading(source, item, self._damaged)
            finally:
                source.stop()
                source.close_blocking()
