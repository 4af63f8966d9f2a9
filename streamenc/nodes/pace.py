"""Releases frames when their time has come, so that a file plays like a microphone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import anyio

from streamenc.errors import UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform

MAX_GAP_SECONDS = Fraction(1, 10)


class Pace(AsyncTransform):
    """Releases each frame when it would be there: sound at its end, an image at its beginning.

    The clock starts with the first frame; the schedule derives from integer pts alone and cannot
    drift. `arrived_ns` becomes the time at which the frame was due. Where the graph falls behind,
    frames are released at once until it caught up, and the time they waited counts in their
    latency, as it would with a microphone that does not wait. A gap of more than 0.1 s, a jump back
    and a flagged frame go on without a pause: they move the schedule. The tracks of a mux keep one
    schedule; each has gaps of its own.

    As behind a microphone, edges behind it may drop frames; none does so unless it is told to, by a
    policy or a `max_age_ms`. Where the graph is stopped, as by Ctrl-C, the frame whose time it is
    comes at once, and those that are still to come do not, as where a microphone is switched off.

    speed  Seconds of media per second, more than 0; 1 is real time.

    Raises UsageError where `speed` is out of range.
    """

    live = True

    def __init__(self, speed: float = 1.0) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise UsageError(
                f"got speed={speed}; it is a finite factor above 0, and 1 is real time"
            )
        self.speed = speed
        self._started = False
        # The schedule's anchor: this time of the media is due at this time of the clock.
        self._origin = Fraction(0)
        self._origin_ns = self._due_ns = 0
        self._ends: dict[int, Fraction] = {}  # of each track's frame before, seconds
        self._stopped = self._over = False
        self._waiting: anyio.CancelScope | None = None

    async def open(self, info: StreamInfo) -> StreamInfo:
        self._info = info
        return info

    async def push(self, frame: Frame) -> Iterable[Frame]:
        info = self._info.track(frame.track)
        start, end = (pts * info.time_base for pts in (frame.pts, frame.pts + frame.duration))
        before = self._ends.get(frame.track, start)
        self._ends[frame.track] = end
        # Between segments of text there may be nothing for long, and revisions go back.
        jumps = info.kind != "text" and abs(start - before) > MAX_GAP_SECONDS
        if not self._started:
            self._started = True
            self._origin_ns, self._origin = self.clock.now_ns(), start
        elif jumps or (frame.discontinuity and info.kind != "text"):
            self._origin_ns, self._origin = self._due_ns, start
        self._due_ns = self._at_ns(start if info.kind == "video" else end)
        if not self._stopped:
            with anyio.CancelScope() as self._waiting:
                await self.clock.sleep_until_ns(self._due_ns)
        now_ns = self.clock.now_ns()
        self._over = self._over or (self._stopped and self._at_ns(start) > now_ns)
        return () if self._over else (frame.with_(arrived_ns=min(self._due_ns, now_ns)),)

    def stop(self) -> None:
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _at_ns(self, seconds: Fraction) -> int:
        """When this time of the media is, on the clock."""
        return self._origin_ns + int((seconds - self._origin) / Fraction(self.speed) * 10**9)
