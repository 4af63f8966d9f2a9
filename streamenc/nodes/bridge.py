"""Bridges short gaps in a live video: an encoder runs on over images that were left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform

log = logging.getLogger(__name__)


class Bridge(Transform):
    """Takes the flag off an image that comes at most `max_gap_ms` later than it should have.

    That is, than the one before it ends, or at any time after its beginning, as the rate may be a
    guess.

    An encoder with a memory starts anew at each flag. Where a camera is faster than the encoder,
    images are left out all the time, and it would never get beyond its first frame; over a short
    gap the scene is the same, and the images' times still tell how far they lie apart. Longer
    gaps, and jumps backward, stay flagged.

    gaps_bridged, bridged_ms  What was bridged so far.

    Raises UsageError where `max_gap_ms` is negative.
    """

    def __init__(self, max_gap_ms: float) -> None:
        if not max_gap_ms >= 0:
            raise UsageError(f"got max_gap_ms={max_gap_ms}; wanted 0 or more milliseconds")
        self.max_gap_ms = max_gap_ms
        self.gaps_bridged = 0
        self.bridged_ms = 0.0
        self._start: int | None = None
        self._end = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "video":
            raise FitError(f"Bridge takes video; got {info}")
        self._ms_per_tick = info.time_base * 1000
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        start, end = self._start, self._end
        self._start, self._end = frame.pts, frame.pts + frame.duration
        if not frame.discontinuity or start is None or frame.pts <= start:
            return (frame,)
        gap_ms = float(max(0, frame.pts - end) * self._ms_per_tick)
        if gap_ms > self.max_gap_ms:
            return (frame,)
        # The first is worth a word: a user may want a lower rate, or a faster model.
        level = logging.DEBUG if self.gaps_bridged else logging.WARNING
        log.log(
            level,
            "images are left out (%.0f ms at pts %d); the encoder goes on over such gaps",
            gap_ms, frame.pts,
        )  # fmt: skip
        self.gaps_bridged += 1
        self.bridged_ms += gap_ms
        return (frame.with_(discontinuity=False),)
