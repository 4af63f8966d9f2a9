"""Stop: how a run is asked to end, from a signal's handler or another thread."""

from __future__ import annotations

import math
import time

from streamenc.graph.interrupt import ONE_WISH_SECONDS


class Stop:
    """Asked once, a run finishes the parts in hand and begins no other; asked twice, it breaks off.

    What it breaks off leaves nothing behind, and is made again by the next run.
    """

    def __init__(self) -> None:
        self._times = 0
        self._asked_at = -math.inf

    def ask(self) -> None:
        """May be called from a signal's handler; what follows within 0.3 s counts as one."""
        now = time.monotonic()
        if now - self._asked_at > ONE_WISH_SECONDS:
            self._asked_at = now
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
