"""Timeline: the timestamps of what a model makes, from the timestamps of what it was given."""

from __future__ import annotations

from fractions import Fraction

from streamenc.frames import StreamInfo
from streamenc.spec import StreamSpec


class Timeline:
    """Counts items in and out of one stream and turns the counts into pts, without adding up any rounding.

    All times are integer ticks of the edge's time base; a stream starts at an anchor and starts anew there
    after a gap.
    """

    def __init__(self, spec: StreamSpec, info: StreamInfo) -> None:
        self._ticks_per_input = 1 / (spec.input.rate * info.time_base)
        self._inputs_per_output = Fraction(spec.hop, spec.hop_out)
        self._anchor: int | None = None
        self._end = 0
        self._out = 0

    @property
    def started(self) -> bool:
        return self._anchor is not None

    def restart(self) -> None:
        """The next input starts a new stream."""
        self._anchor, self._out = None, 0

    def take(self, pts: int, duration: int) -> None:
        """Input that covers [pts, pts + duration) went in."""
        if self._anchor is None:
            self._anchor = pts
        self._end = pts + duration

    def give(self, items: int, *, last: bool = False) -> tuple[int, int]:
        """pts and duration of the next `items` outputs. The stream's last end where its input ended."""
        pts = self._at(self._out)
        self._out += items
        end = self._at(self._out)
        if last:
            end = max(pts, min(end, self._end))
        return pts, end - pts

    def left(self) -> int:
        """Outputs that still lie within the input so far; what a model pads beyond is not part of it."""
        assert self._anchor is not None
        ticks_per_output = self._ticks_per_input * self._inputs_per_output
        return round((self._end - self._anchor) / ticks_per_output) - self._out

    def _at(self, item: int) -> int:
        assert self._anchor is not None
        return self._anchor + round(item * self._inputs_per_output * self._ticks_per_input)
