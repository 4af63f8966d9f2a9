"""Decoded audio on a timeline counted in samples, whatever a container's timestamps do."""

from __future__ import annotations

from fractions import Fraction

# What a container says beyond this (in ticks) is taken for nonsense rather than for a time.
MAX_POSITION = 2**60


class ContainerTime:
    """Gives each decoded frame an integer pts in samples.

    The first pts is the container's. After it, samples are counted, and the container's timestamps
    only watched: rounding (milliseconds in Matroska) and jitter must not look like gaps. Two things
    do: a sudden step of more than half a frame (at most 20 ms, at least two ticks of the
    container), and a slow drift that has come to 100 ms.
    """

    def __init__(self, rate: int) -> None:
        self._max_step = Fraction(rate, 50)
        self._max_drift = Fraction(rate, 10)
        self._next: int | None = None
        self._ahead = Fraction(0)

    def place(
        self, position: Fraction | None, tick: Fraction, samples: int, skipped: bool = False
    ) -> tuple[int, bool]:
        """The pts of the next `samples` samples, and whether they break with those before.

        position  Where the container puts them, in samples; None where it does not say.
        tick      The container's time base, in samples.
        skipped   Something before them is known to be missing.
        """
        if position is not None and abs(position) > MAX_POSITION:
            position = None
        if self._next is None:
            pts, broken = round(position or 0), False
        elif position is None:
            pts, broken = self._next, skipped
        else:
            ahead = position - self._next
            step = max(2 * tick, min(Fraction(samples, 2), self._max_step))
            jumped = abs(ahead - self._ahead) > step or abs(ahead) > max(self._max_drift, 2 * tick)
            pts, broken = (round(position), True) if jumped else (self._next, skipped)
        if position is not None:
            self._ahead = position - pts
        self._next = pts + samples
        return pts, broken
