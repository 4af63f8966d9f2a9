"""Patience: how long a stream stands still for a subscriber, when others stopped taking before."""

from __future__ import annotations

# Of the time, what those may cost the others who come, are waited for, and are given up.
WASTED_SHARE = 0.05
# So long others wait for somebody that has taken nothing yet.
STRANGER_S = 0.5


class Patience:
    """`most_s` for a subscriber that was taking before anybody was given up.

    For one that came later it is less by what was wasted, so that someone who comes again and again
    to be waited for costs the others a small share of the time; and for one that has taken nothing
    yet it is short, where others wait with the stream.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._wasted_s = 0.0
        self._at_s = float("-inf")

    def left_s(self, joined_s: float, taking: bool, others: bool, now_s: float) -> float:
        """Seconds for which the stream waits for one that joined at `joined_s`."""
        wasted_s = self._wasted(now_s) if joined_s >= self._at_s else 0.0
        most_s = self._most_s if taking or not others else min(self._most_s, STRANGER_S)
        return max(0.0, most_s - wasted_s)

    def waste(self, since_s: float, now_s: float) -> None:
        """The stream stood still since then for one that is now given up."""
        # Several may be given up for whom it waited at the same time.
        wasted_s = now_s - max(since_s, self._at_s)
        self._wasted_s, self._at_s = self._wasted(now_s) + wasted_s, now_s

    def _wasted(self, now_s: float) -> float:
        if not self._wasted_s:
            return 0.0
        return max(0.0, self._wasted_s - WASTED_SHARE * (now_s - self._at_s))
