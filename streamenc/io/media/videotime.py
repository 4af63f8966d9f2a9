"""Images on a timeline in ticks, whatever a container's timestamps do; and fewer of them."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

# How many intervals between images are remembered, and how many of them have to be alike.
REMEMBERED = 32
REGULAR = 8


class VideoTime:
    """Gives each image an integer pts, the container's own wherever it has one.

    An image that comes later than the container says that the one before it lasts may follow a
    hole, or just come late, as images may come at irregular times. It is taken for a hole where
    the last 8 intervals were alike and this one is half as long again; or else, where it is longer
    than three nominal ones and than twice the longest of the last 32. A time that does not advance
    is a break, too. An image without a time follows on from the one before it.

    nominal  Ticks from one image to the next by the stream's rate.
    """

    def __init__(self, nominal: int) -> None:
        self._nominal = nominal
        self._intervals: deque[int] = deque(maxlen=REMEMBERED)
        self._pts: int | None = None
        self._lasts = nominal

    def place(self, position: int | None, lasts: int = 0) -> tuple[int, bool]:
        """The pts of the next image, and whether it breaks with the one before.

        position  Where the container puts it; None where it does not say.
        lasts     How long it says that the image lasts; 0 where it does not say.
        """
        broken = False
        if self._pts is None:
            pts = position or 0
        elif position is None:
            pts = self._pts + self._lasts
        else:
            pts = position
            interval = pts - self._pts
            longest = max(self._longest(), self._lasts)
            broken = not 0 < interval <= longest
            if interval > 0:
                # Of a stream that has become slower only the first few are taken for holes.
                self._intervals.append(min(interval, 2 * longest))
        self._pts = pts
        self._lasts = lasts if lasts > 0 else self._nominal
        return pts, broken

    def _longest(self) -> int:
        last = list(self._intervals)[-REGULAR:]
        if len(last) == REGULAR and 4 * max(last) <= 5 * min(last):
            return 3 * max(last) // 2
        return max(3 * self._nominal, 2 * max(self._intervals, default=0))


class Thinning:
    """Which images to keep so that there are at most `fps` in a second, by their pts.

    The first one of each interval of 1/fps is kept, counted from the first one of all, or from the
    last break.

    nominal  Ticks from one image to the next, before any is left out.
    """

    def __init__(self, fps: Fraction, time_base: Fraction, nominal: int) -> None:
        self._per_tick = fps * time_base
        # A pts that was rounded down must not fall into the interval before.
        self._slack = min(Fraction(1), Fraction(nominal, 4))
        self._start: int | None = None
        self._kept = -1

    def keeps(self, pts: int, broken: bool) -> bool:
        if self._start is None or broken:
            self._start, self._kept = pts, -1
        number = int((pts - self._start + self._slack) * self._per_tick)
        if number <= self._kept:
            return False
        self._kept = number
        return True
