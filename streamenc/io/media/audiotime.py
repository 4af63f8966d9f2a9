"""Decoded audio on a timeline counted in samples, whatever a container's timestamps do."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

# What a container says beyond this (in ticks) is taken for nonsense rather than for a time.
MAX_POSITION = 2**60
# How many frames tell what is usual; fewer where times are steady, so that a drift is followed.
REMEMBERED = 64
STEADY = 8
# How many frames at most are heard before a step is judged, and of how many the median counts.
HEARD = 16
TOGETHER = 5
# So many that agree settle it at once, either way.
ALIKE = 3


@dataclass(slots=True)
class _Heard:
    """A frame whose place is not decided yet; all in samples.

    counted  From the first frame of all to this one.
    still    The container gives it the time of the frame before it.
    ahead    By how much the container puts it behind what was counted; None where it has no time.
    own      The same against the durations that the container itself gave.
    """

    counted: Fraction | int
    samples: Fraction | int
    tick: float
    missing: bool
    still: bool
    ahead: float | None
    own: float


class ContainerTime:
    """Gives each decoded frame an integer pts in samples: the one place that decides it for sound.

    The first pts is the container's. After it, samples are counted, and the container's timestamps
    only watched, as they may be rounded (milliseconds in Matroska), stamped by a busy browser, or
    off for a frame (blocks of two lengths in Vorbis). A gap, or a jump backward, is a step that
    stays: more than half a frame (at most 20 ms, at least two ticks of the container), more than
    times scatter there, over the frames that follow, and not only against the samples but also
    against the durations that the container gives its packets; where its own account has no hole
    (raw AAC whose rate changes), none is made up. It is flagged once, on the frame before which it
    lies, and is whole packets long where they are alike and times too scattered to say more. A slow
    drift that has come to 100 ms is followed, by one flagged frame, too.

    So a frame that seems out of place waits for those after it: mostly for two or three, at most 15
    and, of a live source, no more than 0.2 s. Frames in place never wait.

    rate  Samples per second of the timeline.
    live  Whether what waits comes late.
    """

    def __init__(self, rate: int, live: bool = False) -> None:
        self._max_step = rate / 50
        self._max_drift = rate / 10
        self._max_wait = rate / 5 if live else float("inf")
        self._first: int | None = None
        self._told: Fraction | int | None = None  # the container's time of the frame before
        # Integers as long as all is: they are much faster.
        self._counted: Fraction | int = 0
        self._claimed: Fraction | int = 0  # the same by the durations that the container gave
        self._moved = 0  # by all gaps so far
        self._waiting: deque[_Heard] = deque()
        self._size: Fraction | int = 0  # of the frame before those that wait
        # How far frames are usually ahead of where they are put, by samples and by durations; how
        # much that changes from one to the next; and of how many frames this is known.
        self._usual_ahead = self._usual_own = self._anchored_own = 0.0
        self._change = self._last_ahead = 0.0
        self._known = 0

    def push(
        self,
        position: Fraction | int | None,
        tick: Fraction | int,
        samples: Fraction | int,
        lasts: Fraction | int = 0,
        missing: bool = False,
    ) -> list[tuple[int, bool]]:
        """Takes the next frame; gives what is decided now, of this frame and of those that waited.

        Each is the pts of the oldest frame that has none yet, and whether it breaks with the one
        before it.

        position  Where the container puts it, in samples; None where it does not say.
        tick      The container's time base, in samples.
        samples   How many it has, of this timeline's.
        lasts     How long the container says that it lasts, in samples; 0 where it does not say.
        missing   Something before it is known to be missing.
        """
        if position is not None and not -MAX_POSITION <= position <= MAX_POSITION:
            position = None
        if self._first is None:
            self._first = round(position or 0)
        if self._is_exact(position, missing):
            placed = round(self._first + self._counted) + self._moved
            self._told, self._size = position, samples
            self._known += 1
            self._count(samples, lasts, float(tick))
            return [(placed, False)]
        still, self._told = position == self._told, position
        frame = _Heard(self._counted, samples, float(tick), missing, still, None, 0.0)
        if position is not None:
            since = position - self._first
            frame.ahead, frame.own = float(since - self._counted), float(since - self._claimed)
        self._waiting.append(frame)
        self._count(samples, lasts, frame.tick)
        return self._settle(ended=False)

    def _is_exact(self, position: Fraction | int | None, missing: bool) -> bool:
        """Whether a frame is where it was counted to be, to the very sample, as were all before
        it: there is nothing to learn from it, and what `_settle` would do is known."""
        if position is None or missing or self._waiting:
            return False
        assert self._first is not None
        since = position - self._first - self._moved
        if since != self._counted or since != self._claimed:
            return False
        off = self._usual_ahead or self._usual_own or self._anchored_own
        return not (off or self._change or self._last_ahead)

    def _count(self, samples: Fraction | int, lasts: Fraction | int, tick: float) -> None:
        self._counted += samples
        told = lasts > 0 and abs(float(lasts) - float(samples)) > tick
        self._claimed += lasts if told else samples

    def flush(self) -> list[tuple[int, bool]]:
        """What still waits is decided by what there is."""
        return self._settle(ended=True)

    def _settle(self, ended: bool) -> list[tuple[int, bool]]:
        placed = []
        while self._waiting:
            head = self._waiting[0]
            broken = head.missing
            off = self._off(head)
            if off is not None and abs(off) > self._least(head):
                step = self._step(head, ended)
                if step is None:
                    break
                if step:
                    broken = True
                    self._move(head, off, step)
                    off -= step
            broken = (off is not None and self._follow(head, off)) or broken
            self._waiting.popleft()
            self._size = head.samples
            assert self._first is not None
            placed.append((round(self._first + head.counted) + self._moved, broken))
        return placed

    def _off(self, frame: _Heard) -> float | None:
        """How far it is from where it was to be, by the account that says less; None without a
        time."""
        if frame.ahead is None:
            return None
        by_samples = frame.ahead - self._moved - self._usual_ahead
        by_durations = frame.own - self._moved - self._usual_own
        if frame.still and by_samples < 0:
            return None  # a clock that stands still tells nothing
        if by_samples * by_durations <= 0:
            return 0.0
        return min(by_samples, by_durations, key=abs)

    @property
    def _scatter(self) -> float:
        """How far times are off at most; of those at random two differ by 2/3 of that."""
        return 1.5 * self._change

    def _least(self, head: _Heard) -> float:
        """What a gap has to exceed."""
        return max(head.tick + 1, min(float(head.samples) / 2, self._max_step))

    def _step(self, head: _Heard, ended: bool) -> float | None:
        """The gap before `head`; 0 where there is none, None where more has to come first."""
        offs = [off for frame in self._waiting if (off := self._off(frame)) is not None]
        least, tick = self._least(head), 2 * head.tick + 1
        first = offs[:ALIKE]
        if len(first) == ALIKE and max(first) - min(first) <= tick:
            step = median(first)
            known = self._known >= STEADY or abs(step) > 2 * tick
            if known and abs(step) > max(least, 2 * self._scatter):
                return step
        in_place = [abs(off) <= least for off in offs[1:]]
        if any(all(in_place[at : at + ALIKE]) for at in range(len(in_place) - ALIKE + 1)):
            return 0.0
        held = sum(float(frame.samples) for frame in self._waiting)
        if not ended and len(self._waiting) < HEARD and held < self._max_wait:
            return None
        level = median(offs)
        scatter = self._scatter
        if self._known < STEADY:
            scatter = max(scatter, 2 * median(abs(off - level) for off in offs))
        # The less is known, the less is a step told from what scatters.
        enough = max(least, (1.2 + 6 / (4 + self._known)) * scatter)
        if len(offs) < ALIKE and not head.missing:
            # Nothing shows that it stays; what is lost is at least a packet.
            enough = max(enough, float(min(head.samples, self._size)) - tick)
        soon, late = median(offs[:TOGETHER]), median(offs[-TOGETHER:])
        falls = abs(soon) - abs(late) > max(tick, 2 * scatter, abs(soon) / 4)
        if min(level * soon, level * offs[0]) <= 0 or abs(level) <= enough or falls:
            return 0.0
        step = min(level, soon, key=abs)
        if abs(step) - abs(offs[0]) > tick + 2 * scatter < abs(offs[0]):
            step = offs[0]  # another gap follows soon
        step = self._packets(head, step) or step
        # It lies before the frame that parts best those in place from those that are moved.
        costs = [
            sum(map(abs, offs[:at])) + sum(abs(off - step) for off in offs[at:])
            for at in range(min(len(offs), ALIKE * 2))
        ]
        return step if costs[0] <= min(costs) else 0.0

    def _packets(self, head: _Heard, step: float) -> int:
        """`step` in whole packets, where it can be told from that by no time; otherwise 0."""
        if step <= 0 or head.samples != self._size:
            return 0
        packets = round(max(1, round(step / self._size)) * self._size)
        return packets if abs(packets - step) <= head.tick + 2 * self._scatter else 0

    def _move(self, head: _Heard, off: float, step: float) -> None:
        """Moves what comes from `head` on, which is off by `off`, by a gap of `step`."""
        if packets := self._packets(head, step):
            self._moved += packets
            return
        before, level = self._moved, self._moved + self._usual_ahead + step
        # The time of the frame itself is as good as any, where it is like those behind it.
        alike = head.ahead is not None and abs(off - step) <= 2 * head.tick
        self._moved = round(head.ahead if alike and head.ahead is not None else level)
        self._start_anew(level - self._moved, before + self._usual_own + step - self._moved)

    def _follow(self, frame: _Heard, off: float) -> bool:
        """Learns from a frame that has its place; whether that shows a drift to be followed."""
        assert frame.ahead is not None
        least = self._least(frame)
        ahead, own = frame.ahead - self._moved, frame.own - self._moved
        self._known += 1
        weight = 1 / min(self._known, REMEMBERED)
        # What is far off counts, but not as far as it is.
        most = 3 * max(least, self._scatter)
        self._change += weight * (min(abs(ahead - self._last_ahead), most) - self._change)
        self._last_ahead = ahead
        far = max(least, self._scatter)
        if self._change <= max(frame.tick, least / 8):
            weight = 1 / min(self._known, STEADY)
        if abs(ahead - self._usual_ahead) <= far:
            self._usual_ahead += weight * (ahead - self._usual_ahead)
        # The other account only has to be silent while all is well.
        if abs(off) <= far:
            self._usual_own += weight * (own - self._usual_own)
        drift, by_durations = self._usual_ahead, self._usual_own - self._anchored_own
        most = max(self._max_drift, 2 * frame.tick)
        if abs(drift) <= most or drift * by_durations <= 0 or 2 * abs(by_durations) < most:
            return False
        moved = round(drift)
        self._moved += moved
        self._usual_ahead -= moved
        self._last_ahead -= moved
        self._usual_own -= moved
        self._anchored_own = self._usual_own
        return True

    def _start_anew(self, ahead: float, own: float) -> None:
        """Takes a frame that is so far ahead of where it was put for one in place."""
        self._usual_ahead = self._last_ahead = ahead
        self._usual_own = self._anchored_own = own
        self._change = 0.0
        self._known = 0


def times(count: int, number: Fraction | int) -> Fraction | int:
    """Their product, whole where it can be: fractions take thirty times as long to reckon with."""
    if isinstance(number, int):
        return count * number
    whole, rest = divmod(count * number.numerator, number.denominator)
    return Fraction(count * number.numerator, number.denominator) if rest else whole
