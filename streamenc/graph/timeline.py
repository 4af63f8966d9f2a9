"""Item counts to timestamps and back, in integers: exact however long the stream."""

from __future__ import annotations

from fractions import Fraction


class Timeline:
    """The timestamps of a stream of `rate` items per second that has run evenly since its anchor.

    Everything derives from the count of items since the anchor, so no rounding ever adds up.
    """

    def __init__(self, rate: Fraction, time_base: Fraction) -> None:
        ticks_per_item = 1 / (rate * time_base)
        self._num, self._den = ticks_per_item.numerator, ticks_per_item.denominator
        self._origin = 0

    def anchor(self, pts: int) -> None:
        """Item 0 is at `pts` from here on."""
        self._origin = pts

    def pts(self, count: int) -> int:
        """Time of item `count`, rounded to the nearest tick."""
        return self._origin + (2 * count * self._num + self._den) // (2 * self._den)

    def gap(self, count: int, pts: int) -> int:
        """Items missing (negative: too many) where item `count` claims to be at `pts`; 0 where it
        fits.

        Up to one tick plus one item is no gap: a container rounds the anchor's and this item's time
        to ticks, and a source may round its own count to items. What gets lost in practice, a
        packet or a device's block, is hundreds of items.
        """
        excess = (pts - self._origin) * self._den - count * self._num  # in ticks / den, exact
        if abs(excess) <= self._den + self._num:
            return 0
        return round(Fraction(excess, self._num))
