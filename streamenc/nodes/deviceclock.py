"""How a device's clock runs against the graph's, as its frames arrive. No I/O, no asyncio."""

from __future__ import annotations

import math
from collections import deque

# What is late is late by some jitter, mostly; in so long a time, something comes in time.
WINDOW_SECONDS = 4.0
# How fast the estimate follows: slow against jitter, fast against what drift does meanwhile.
FOLLOW_SECONDS = 10.0
# A device further off than that is broken, and one that is set anew is another clock.
MAX_DRIFT = 1000e-6
JUMP_SECONDS = 0.2


class DeviceClock:
    """Maps device time to graph time, both in seconds: graph = device + `offset`.

    Frames arrive late, never early: by a latency, which is constant, and by jitter on top of it. So
    the least (arrival - device time) of the last 4 s is the offset, to within what the best of some
    hundred frames was late. `offset` follows it by a control loop of the second order that knows a
    drift as well (a proportional and an integral part, critically damped), and never faster than
    1000 millionths, so that media which follow it stay smooth.

    offset  graph time - device time, where it is mapped to now.
    drift   By how much `offset` moves in a second now.
    learnt  The part of it that lasts: below 0 for a device that is fast.
    error   Measured offset - `offset`.
    """

    def __init__(self) -> None:
        self.offset = self.drift = self.learnt = self.error = 0.0
        self._anchored = False
        self._window: deque[tuple[float, float]] = deque()  # (device time, offset), both rising
        self._at: float | None = None

    def anchor(self) -> None:
        """Takes the measured offset as it is: at a start."""
        self.offset, self.error, self._anchored = self.measured, 0.0, True

    def forget(self) -> None:
        """The device's clock jumped: what was measured before says nothing. The drift stays."""
        self._window.clear()
        self._at, self._anchored = None, False

    @property
    def measured(self) -> float:
        return self._window[0][1]

    @property
    def jumped(self) -> bool:
        """Whether the offset is so far off that it is to be anchored anew."""
        return abs(self.error) > JUMP_SECONDS

    def arrive(self, device: float, graph: float) -> None:
        """A frame that was complete at `device` arrived at `graph`."""
        late = graph - device
        while self._window and self._window[-1][1] >= late:
            self._window.pop()
        self._window.append((device, late))
        while self._window[0][0] < device - WINDOW_SECONDS:
            self._window.popleft()
        seconds = 0.0 if self._at is None else min(1.0, max(0.0, device - self._at))
        self._at = device
        self.error = self.measured - self.offset
        if self._anchored and not self.jumped:
            self._follow(seconds)

    def _follow(self, seconds: float) -> None:
        per_second = 1 / FOLLOW_SECONDS
        # The integral waits while the loop is at its limit, or it would overshoot afterwards.
        wanted = self.learnt + 2 * per_second * self.error
        self.drift = max(-MAX_DRIFT, min(MAX_DRIFT, wanted))
        if wanted == self.drift:
            self.learnt += per_second**2 * self.error * seconds
        self.offset += self.drift * seconds
        self.error = self.measured - self.offset
        assert math.isfinite(self.offset)
