"""Images on a timeline in ticks, whatever a container's timestamps do; and fewer of them."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

# How many intervals between images are remembered, and how many of them have to be alike.
REMEMBERED = 32
REGULAR = 8
# So many in order are not dated as they were encoded: more images than B-frames are apart.
IN_ORDER = 16


class VideoTime:
    """Gives each image an integer pts, the container's own wherever it has one to be trusted.

    An image that comes later than the container says that the one before it lasts may follow a
    hole, or just come late, as images may come at irregular times. It is taken for a hole where
    the last 8 intervals were alike and this one is half as long again; or else, where it is longer
    than three nominal ones and than twice the longest of the last 32. A time that does not advance
    is a break, too. An image without a time follows on from the one before it.

    Decoders give images in the order in which they are shown. One whose time falls between those
    of images before it was dated in another order: that in which it was encoded, which is all that
    AVI knows of H.264. Such a stream has no holes; its images are counted, by the nominal rate, and
    what the container leaves out (images that a camera dropped) is made up for within 32 images.
    Where 16 images then come in order, it was a clock that was set back: from there on, times are
    the container's again.

    nominal  Ticks from one image to the next by the stream's rate.
    ordered  Whether the container's times are in the order of the images, for all that is known.
    """

    def __init__(self, nominal: int, ordered: bool = True) -> None:
        self._nominal = nominal
        self._ordered = ordered
        self._can_be_ordered = ordered
        self._rising = 0  # images in a row whose times rise, where they were out of order
        self._intervals: deque[int] = deque(maxlen=REMEMBERED)
        self._positions: deque[int] = deque(maxlen=REMEMBERED)
        self._newest = 0  # of all positions, where they are out of order
        self._ahead: deque[int] = deque(maxlen=REMEMBERED)
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
        elif not self._ordered or self._fills(position):
            pts, broken = self._count(position)
        else:
            pts = position
            interval = pts - self._pts
            longest = max(self._longest(), self._lasts)
            broken = not 0 < interval <= longest
            if interval > 0:
                # Of a stream that has become slower only the first few are taken for holes.
                self._intervals.append(min(interval, 2 * longest))
        if position is not None:
            self._positions.append(position)
        self._pts = pts
        self._lasts = lasts if lasts > 0 else self._nominal
        return pts, broken

    def _fills(self, position: int) -> bool:
        """Whether it is back where times were passed over before."""
        known = self._positions
        return len(known) > 1 and min(known) < position < known[-1] and position not in known

    def _count(self, position: int) -> tuple[int, bool]:
        assert self._pts is not None
        if self._ordered or not self._positions:
            self._ordered = False
            self._newest = max(self._positions, default=self._pts)
            self._ahead.clear()
            self._rising = 0
        elif position > self._positions[-1]:
            self._rising += 1
        else:
            self._rising = 0
        if self._can_be_ordered and self._rising == IN_ORDER:
            self._ordered = True
            return position, True
        pts = self._pts + self._nominal
        if abs(position - pts) > REMEMBERED * self._nominal:
            self._positions.clear()
            self._ordered = self._can_be_ordered
            return position, True
        # Wherever all images are shown that came before one, the newest time is that of the last.
        self._newest = max(self._newest, position)
        self._ahead.append(self._newest - pts)
        left_out = min(self._ahead) if len(self._ahead) == REMEMBERED else 0
        if left_out >= self._nominal:
            self._ahead.clear()
            pts += left_out
        return pts, False

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
