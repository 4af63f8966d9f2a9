"""Short gaps are no reason to start anew: sound gets silence, over images an encoder runs on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from streamenc import options
from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.graph.timeline import Timeline

log = logging.getLogger(__name__)

MAX_CONCEAL_MS = 10_000  # bounds the zeros that one frame with a wild pts can bring about


class Gaps(Transform):
    """Conceals forward gaps of at most `conceal_ms`; longer ones, and jumps backward, stay.

    Sound: a frame of zeros as long as the gap comes before the frame behind it, which loses its
    flag. A flagged frame without any gap in its pts keeps it: how much is missing is not known.

    Images: the one behind the gap loses its flag, and keeps its time. The gap is counted from when
    the image before it ends, and any time after its beginning is none, as the rate may be a guess.
    An encoder with a memory starts anew at each flag. Where a camera is faster than the encoder,
    images are left out all the time, and it would never get beyond its first frame; over a short
    gap the scene is the same, and the images' times still tell how far they lie apart.

    conceal_ms      0 to 10,000.
    gaps_concealed, concealed_ms  How many so far, and how long together.

    Raises UsageError where `conceal_ms` is out of range.
    """

    def __init__(self, conceal_ms: float) -> None:
        self.conceal_ms = options.number("conceal_ms", conceal_ms, 0, MAX_CONCEAL_MS)
        self.gaps_concealed = 0
        self.concealed_ms = 0.0
        self._seq = 0
        self._taken: int | None = None  # samples since the anchor, of sound
        self._start: int | None = None  # the last image's
        self._end = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind not in ("audio", "video"):
            raise FitError(f"Gaps takes audio or video; got {info}")
        self._sound = info.kind == "audio"
        self._timeline = Timeline(info.rate, info.time_base)
        self._rate, self._ms_per_tick = info.rate, info.time_base * 1000
        self._longest = int(info.rate * round(self.conceal_ms * 1000) / 1_000_000)
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        return self._filled(frame) if self._sound else (self._bridged(frame),)

    def flush(self) -> Iterable[Frame]:
        self._taken = None
        return ()

    def _filled(self, frame: Frame) -> list[Frame]:
        out = []
        gap = 0 if self._taken is None else self._timeline.gap(self._taken, frame.pts)
        if self._taken is not None and 0 < gap <= self._longest:
            log.info("concealed a gap of %d samples before pts %d", gap, frame.pts)
            self._count(Fraction(1000 * gap) / self._rate)
            out.append(self._silence(self._taken, gap, frame))
            self._taken += gap
            frame = frame.with_(discontinuity=False)
        elif self._taken is None or gap or frame.discontinuity:
            self._timeline.anchor(frame.pts)
            self._taken = 0
        self._taken += frame.data.shape[-1]
        out.append(self._numbered(frame))
        return out

    def _silence(self, at: int, samples: int, behind: Frame) -> Frame:
        pts = self._timeline.pts(at)
        frame = behind.with_(
            data=np.zeros((*behind.data.shape[:-1], samples), behind.data.dtype),
            pts=pts,
            duration=self._timeline.pts(at + samples) - pts,
            discontinuity=False,
        )
        return self._numbered(frame)

    def _numbered(self, frame: Frame) -> Frame:
        self._seq += 1
        return frame.with_(seq=self._seq - 1)

    def _bridged(self, frame: Frame) -> Frame:
        start, end = self._start, self._end
        self._start, self._end = frame.pts, frame.pts + frame.duration
        if not frame.discontinuity or start is None or frame.pts <= start:
            return frame
        gap_ms = max(0, frame.pts - end) * self._ms_per_tick
        if gap_ms > self.conceal_ms:
            return frame
        # The first is worth a word: a user may want a lower rate, or a faster model.
        level = logging.DEBUG if self.gaps_concealed else logging.WARNING
        log.log(
            level,
            "images are left out (%.0f ms at pts %d); the encoder goes on over such gaps",
            float(gap_ms), frame.pts,
        )  # fmt: skip
        self._count(gap_ms)
        return frame.with_(discontinuity=False)

    def _count(self, gap_ms: Fraction) -> None:
        self.gaps_concealed += 1
        self.concealed_ms += float(gap_ms)
