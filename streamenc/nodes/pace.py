"""Releases frames when their time has come, so that a file plays like a microphone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from streamenc.errors import FitError, UsageError
from streamenc.frames import Frame, StreamInfo
from streamenc.node import AsyncTransform

MAX_GAP_SECONDS = Fraction(1, 10)


class Pace(AsyncTransform):
    """Releases each frame when its end is due in real time, as a microphone would.

    The clock starts with the first frame; the schedule derives from integer pts alone and cannot
    drift. `arrived_ns` becomes the time at which the frame was due. Where the graph falls behind,
    frames are released at once until it caught up, and the time they waited counts in their
    latency, as it would with a microphone that does not wait. A gap of more than 0.1 s, a jump back
    and a flagged frame go on without a pause: they move the schedule.

    speed  Seconds of media per second, more than 0; 1 is real time.

    Raises UsageError where `speed` is out of range.
    """

    def __init__(self, speed: float = 1.0) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise UsageError(
                f"got speed={speed}; it is a finite factor above 0, and 1 is real time"
            )
        self.speed = speed
        self._started = False
        self._origin_pts = self._origin_ns = (
            0  # the schedule's anchor: this pts is due at this time
        )
        self._end = self._due_ns = 0  # of the frame before

    async def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind == "mux":
            raise FitError(f"Pace takes a single stream, before it enters a mux; got {info}")
        self._ns_per_tick = info.time_base * 10**9 / Fraction(self.speed)
        self._max_gap = int(MAX_GAP_SECONDS / info.time_base)
        return info

    async def push(self, frame: Frame) -> Iterable[Frame]:
        if not self._started:
            self._started = True
            self._origin_ns, self._origin_pts = self.clock.now_ns(), frame.pts
        elif frame.discontinuity or not -self._max_gap <= frame.pts - self._end <= self._max_gap:
            self._origin_ns, self._origin_pts = self._due_ns, frame.pts
        self._end = frame.pts + frame.duration
        self._due_ns = self._origin_ns + int((self._end - self._origin_pts) * self._ns_per_tick)
        await self.clock.sleep_until_ns(self._due_ns)
        return (frame.with_(arrived_ns=self._due_ns),)
