"""Dating: when packets of images, codes or texts are, whether they say it or not."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from msgspec import Meta, Struct

from streamenc.graph.timeline import Timeline
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.inputbase import MAX_PTS, TICK

_Pts = Annotated[int, Meta(ge=-MAX_PTS, le=MAX_PTS)]


class DatingState(Struct, array_like=True, frozen=True):
    """Of a Dating: see there."""

    begun: bool
    newest: _Pts
    anchor: _Pts
    count: Annotated[int, Meta(ge=0, le=MAX_PTS)]


class Dating:
    """Ticks of 1/90000 s, as packets have them; what has none follows on from what came before.

    A packet without times has the pts and the duration 0. It is counted, by the nominal rate, from
    the last one that had some. Where times run back, a new stream begins.

    Args:
        rate: Items a second, nominally; 0 where they have no length.

    Attributes:
        begun: Whether something was taken in this stream.
    """

    def __init__(self, rate: Fraction) -> None:
        self._rate = rate
        self._line = Timeline(rate or Fraction(1), TICK)
        self.begun = False
        self._newest = 0  # where the last packet began
        self._anchor, self._count = 0, 0  # items behind the anchor

    @property
    def next_pts(self) -> int:
        """Where the last packet ended."""
        return self._at(self._count)

    def place(self, data: Data, items: int) -> tuple[int, int, bool]:
        """The pts and duration of so many items, and whether a new stream begins with them."""
        back = False
        if data.pts == 0 and data.duration == 0:
            pts = self._at(self._count)
            self._count += items
        else:
            back = data.pts < self._newest
            pts = data.pts
            self._anchor = pts + data.duration
            self._count = 0 if data.duration else items
        self._newest = pts
        flagged = self.begun and (data.discontinuity or back)
        self.begun = True
        return pts, self._at(self._count) - pts, flagged

    def end(self) -> None:
        """What comes next begins a new stream, at any time."""
        self.begun = False

    def state(self) -> DatingState:
        return DatingState(self.begun, self._newest, self._anchor, self._count)

    def restore(self, state: DatingState) -> None:
        self.begun = state.begun
        self._newest, self._anchor, self._count = state.newest, state.anchor, state.count

    def _at(self, count: int) -> int:
        self._line.anchor(self._anchor)
        return self._line.pts(count) if self._rate else self._anchor
