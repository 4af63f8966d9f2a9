"""Numbering: which numbers of a track follow on, which are missing, and which are not believed."""

from __future__ import annotations

from typing import NamedTuple

from streamenc.errors import WireError

# A frame further ahead is believed when the next one confirms it: one packet with an absurd number
# would have a reader wait for the numbers after it.
MAX_SKIP = 2**12
# Where a number turned out to be false, a later jump needs so many frames in a row.
CONFIRMING = 4
# Gaps that are remembered.
MAX_GAPS = 16


class _Gap(NamedTuple):
    """Numbers from `begin` up to `end` of which `missing` did not come; `before` all that did."""

    begin: int
    end: int
    missing: int
    before: bool


class Step(NamedTuple):
    """A frame that is to be delivered.

    lost, missed  By how much the numbers of frames that are missing, and of those before the first
                  one that was read, grow; below 0 where a number before was false.
    follows       It follows on from the one before.
    belied        It shows that a number before was false.
    """

    lost: int
    missed: int
    follows: bool
    belied: bool


class Numbering:
    """The numbers of one track.

    What carries packets keeps their order. So a frame out of a gap that was not sent again shows
    that the number that made the gap was another's: reading goes on from there, and no frame is
    taken for a repetition of one that never came.

    due  The number after the last frame that was read; None before the first.
    """

    def __init__(self, joined: bool) -> None:
        """`joined`: the stream was running when reading began, and may begin at any number."""
        self.due: int | None = None
        self._joined = joined
        self._gaps: list[_Gap] = []
        self._wary = False
        self._doubted, self._confirmed = -1, 0

    def fits(self, seq: int) -> bool:
        """Whether a frame of that number would go on from the last one."""
        return self.due is not None and 0 <= seq - self.due <= MAX_SKIP

    def take(self, seq: int, resent: bool) -> Step | None:
        """What a frame of that number is; None where it is a repetition, or comes too late.

        Raises WireError where its number is not to be believed yet.
        """
        if self.due is None:
            return self._first(seq)
        if seq < self.due:
            return None if resent else self._belied(seq)
        skipped = seq - self.due
        if skipped > (0 if self._wary else MAX_SKIP):
            self._confirm(seq)
        self._confirmed = 0
        step = Step(skipped, 0, skipped == 0, False)
        self._skip(self.due, seq, before=False)
        return step

    def _first(self, seq: int) -> Step:
        if self._joined:
            self._skip(0, seq, before=True)
            return Step(0, seq, True, False)
        absurd = seq > MAX_SKIP
        self._skip(0, seq, before=absurd)
        return Step(0, seq, False, False) if absurd else Step(seq, 0, seq == 0, False)

    def _skip(self, begin: int, seq: int, before: bool) -> None:
        if begin < seq:
            self._gaps.append(_Gap(begin, seq, seq - begin, before))
        if len(self._gaps) > MAX_GAPS:  # two old ones become one
            first, second = self._gaps[1:3]
            missing = first.missing + second.missing
            self._gaps[1:3] = [_Gap(first.begin, second.end, missing, False)]
        self.due = seq + 1

    def _confirm(self, seq: int) -> None:
        """Raises WireError unless frames before this one confirm its number."""
        near = 0 <= seq - self._doubted <= (0 if self._wary else MAX_SKIP)
        self._confirmed = self._confirmed + 1 if near and self._confirmed else 1
        self._doubted = seq + 1
        if self._confirmed < (CONFIRMING if self._wary else 2):
            raise WireError(
                f"got seq {seq} where {self.due} was due, and nothing confirms that yet"
            )

    def _belied(self, seq: int) -> Step | None:
        place = next((i for i, gap in enumerate(self._gaps) if gap.begin <= seq < gap.end), None)
        # A single one may have been overtaken by the frame after it.
        if place is None or self._gaps[place].end - self._gaps[place].begin < 2:
            return None
        gap = self._gaps[place]
        back = [g.missing for g in self._gaps[place:] if not g.before]
        lost = min(0, seq - gap.begin - sum(back)) if not gap.before else -sum(back)
        missed = seq - gap.end if gap.before else 0
        del self._gaps[place:]
        self._skip(gap.begin, seq, gap.before)
        self._wary, self._confirmed = True, 0
        return Step(lost, missed, False, True)
