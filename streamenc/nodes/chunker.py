"""Audio of any frame length -> the lengths an encoder takes: lead first, then hop, hop, ..."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.graph.timeline import Timeline

log = logging.getLogger(__name__)


class Chunker(Transform):
    """Cuts audio into one frame of `lead` samples, then frames of exactly `hop`.

    The samples are never copied where one input frame holds the whole chunk. The tail comes out of
    `flush` as one shorter frame. Times are integers in the input's time base, counted from the last
    anchor; `arrived_ns` is that of the newest input in the chunk.

    A discontinuity is a frame that is flagged, or whose pts is off by more than a tick plus a
    sample. What is held back then goes out first, as a shorter frame, and the next frame starts
    anew: `lead` samples, flagged, at the new pts. Gaps before it fills the short ones with silence.

    lead, hop  Samples per channel, at least 1.
    restarts   How often the stream started anew behind a discontinuity.

    Raises UsageError where a length is out of range.
    """

    def __init__(self, lead: int, hop: int) -> None:
        if lead < 1 or hop < 1:
            raise UsageError(f"got lead={lead}, hop={hop}; both are samples and at least 1")
        self.lead = lead
        self.hop = hop
        self.restarts = 0
        self._pieces: deque[tuple[np.ndarray[Any, Any], int]] = deque()  # samples, arrived_ns
        self._offset = 0  # samples of the first piece that went out already
        self._taken = 0  # samples since the anchor: in, out
        self._given = 0
        self._seq = 0
        self._anchored = False
        self._flag = False

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "audio":
            raise FitError(f"a Chunker cuts audio; got {info}")
        self._timeline = Timeline(info.rate, info.time_base)
        self._rate, self._time_base = info.rate, info.time_base
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        out: list[Frame] = []
        if not self._anchored:
            self._anchor(frame.pts, frame.discontinuity)
        else:
            gap = self._timeline.gap(self._taken, frame.pts)
            if gap or frame.discontinuity:
                self._restart(gap, frame, out)
        self._append(frame.data, frame.arrived_ns, out)
        return out

    def flush(self) -> Iterable[Frame]:
        out: list[Frame] = []
        self._tail(out)
        self._anchored = False
        return out

    def close(self) -> None:
        self._pieces.clear()

    def _restart(self, gap: int, frame: Frame, out: list[Frame]) -> None:
        # The first is a warning; a source whose times are wrong would flood the log with more.
        level = logging.DEBUG if self.restarts else logging.WARNING
        gap_ms = float(1000 * gap / self._rate)
        if gap > 0:
            reason = f"{gap_ms:.4g} ms are missing"
        elif gap < 0:
            reason = f"its time goes back by {-gap_ms:.4g} ms"
        else:
            reason = "it is flagged as not following on"
        log.log(level, "sound starts anew at %.3f s: %s", frame.pts * self._time_base, reason)
        self.restarts += 1
        self._tail(out)
        self._anchor(frame.pts, True)

    def _anchor(self, pts: int, flag: bool) -> None:
        self._timeline.anchor(pts)
        self._taken = self._given = 0
        self._anchored = True
        self._flag = self._flag or flag

    def _append(self, data: np.ndarray[Any, Any], arrived_ns: int, out: list[Frame]) -> None:
        if data.shape[-1]:
            self._pieces.append((data, arrived_ns))
            self._taken += data.shape[-1]
        while self._taken - self._given >= (want := self.hop if self._given else self.lead):
            out.append(self._take(want))

    def _tail(self, out: list[Frame]) -> None:
        if self._taken > self._given:
            out.append(self._take(self._taken - self._given))

    def _take(self, samples: int) -> Frame:
        """The next `samples` of what is held back, as a frame."""
        parts = []
        missing = samples
        while missing:
            data, arrived_ns = self._pieces[0]
            part = data[..., self._offset : self._offset + missing]
            parts.append(part)
            missing -= part.shape[-1]
            self._offset += part.shape[-1]
            if self._offset == data.shape[-1]:
                self._pieces.popleft()
                self._offset = 0
        pts = self._timeline.pts(self._given)
        self._given += samples
        frame = Frame(
            parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1),
            pts=pts,
            duration=self._timeline.pts(self._given) - pts,
            seq=self._seq,
            discontinuity=self._flag,
            arrived_ns=arrived_ns,
        )
        self._seq += 1
        self._flag = False
        return frame
