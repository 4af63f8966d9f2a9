"""Stop: how a run is asked to end, from a signal's handler or another thread."""

from __future__ import annotations


class Stop:
    """Asked once, a run finishes the parts in hand and begins no other; asked twice, it breaks off.

    What it breaks off leaves nothing behind, and is made again by the next run.
    """

    def __init__(self) -> None:
        self._times = 0

    def ask(self) -> None:
        """May be called from a signal's handler."""
        self._times += 1

    def abandon(self) -> None:
        """As if asked twice."""
        self._times = max(self._times, 2)

    @property
    def asked(self) -> bool:
        return self._times > 0

    @property
    def abandoned(self) -> bool:
        return self._times > 1


class Abandoned(Exception):
    """Breaks a part off."""
