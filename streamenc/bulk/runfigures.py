"""RunFigures: how far a run is, how fast, what bounds it, and what went wrong."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec

from streamenc.bulk.items import Fault
from streamenc.bulk.manifest import Finished, ItemError
from streamenc.bulk.partwork import Done, Progress

WORK = ("reading", "decoding", "encoding", "writing")
MOST_REASONS = 1000
SHOWN_REASONS = 3
# Before so much of a run is over, its speed says nothing of what is left.
ETA_SECONDS = 2.0


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has done so far, of its share of the parts.

    Attributes:
        stage: "loading" models, "planning", "working", or "done".
        workers: Processes that do parts; 1 where it is this one.
        parts: How many there are.
        parts_before: Of those, what earlier runs finished.
        parts_done: What this one did.
        parts_items: Items of all parts, where that is known; else 0.
        items, errors: Rows that this run made, those of parts in hand among them, and items that
            are none.
        kinds: Errors by their kind, of streamenc.errors; of finished parts.
        reasons: Their commonest reasons, and how often each; of finished parts.
        media_seconds: Of sound or video in its rows.
        wall_seconds: Since the run began.
        working_seconds: Since its first part began.
        spent: Seconds of all workers, by what they were spent on: "reading", "decoding",
            "encoding", "writing".
        eta_seconds: How long it takes yet; None where that is not known.
        peak_bytes: Memory of the largest worker at its largest.
        deaths: Workers that ended in the middle of a part, and were replaced.
        verified, differing: Items that were encoded once more, and those whose tokens differed; of
            finished parts, those of earlier runs too.
        set_items, set_errors, set_seconds: Of finished parts, those of earlier runs too.
        stopped: Whether it was asked to end before all was done.
    """

    stage: str
    workers: int
    parts: int
    parts_before: int
    parts_done: int
    parts_items: int
    items: int
    errors: int
    kinds: dict[str, int]
    reasons: dict[str, int]
    media_seconds: float
    wall_seconds: float
    working_seconds: float
    spent: dict[str, float]
    eta_seconds: float | None
    peak_bytes: int
    deaths: int
    verified: int
    differing: int
    set_items: int
    set_errors: int
    set_seconds: float
    stopped: bool

    @property
    def hours_per_second(self) -> float:
        """Hours of sound or video in a second of working."""
        return self.times_real_time / 3600

    @property
    def times_real_time(self) -> float:
        return self.media_seconds / self.working_seconds if self.working_seconds else 0.0

    @property
    def times_real_time_per_worker(self) -> float:
        """On a CPU, per core: a worker computes in one thread."""
        return self.times_real_time / self.workers

    @property
    def bound_by(self) -> str:
        """What most of the time was spent on; "" at the beginning."""
        spent = {what: self.spent.get(what, 0.0) for what in WORK}
        most = max(spent, key=spent.__getitem__)
        return most if spent[most] else ""

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields | {
            "hours_per_second": self.hours_per_second,
            "times_real_time": self.times_real_time,
            "times_real_time_per_worker": self.times_real_time_per_worker,
            "bound_by": self.bound_by,
        }


class RunTally:
    """Adds up what workers tell.

    Args:
        workers: As in RunFigures.
    """

    def __init__(self, workers: int) -> None:
        self.stage, self.workers, self.stopped = "loading", workers, False
        self.deaths = self.peak_bytes = 0
        self._began = time.monotonic()
        self._working = 0.0
        self._parts = self._parts_items = self._before = self._done = 0
        self._in_hand: dict[int, _Sum] = {}
        self._sum, self._set = _Sum(), _Sum()
        self._kinds: Counter[str] = Counter()
        self._reasons = Reasons()
        self._spent: Counter[str] = Counter()
        self._verified = self._differing = 0

    def work(self, parts: int, parts_items: int, finished: list[Finished]) -> None:
        """The first part begins.

        Args:
            finished: What earlier runs did.
        """
        self.stage, self._working = "working", time.monotonic()
        self._parts, self._parts_items, self._before = parts, parts_items, len(finished)
        for line in finished:
            self._count(line, self._set)

    def told(self, progress: Progress) -> None:
        self._spent.update(progress.spent)
        self._in_hand.setdefault(progress.part, _Sum()).add(
            progress.items, progress.errors, progress.seconds
        )

    def memory(self, peak_bytes: int) -> None:
        self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def lost(self, part: int) -> None:
        """What was done of a part is done again."""
        self.deaths += 1
        self._in_hand.pop(part, None)

    def finish(self, done: Done) -> None:
        self._in_hand.pop(done.line.part, None)
        self._done += 1
        self._count(done.line, self._sum)
        self._count(done.line, self._set)
        for fault in done.faults:
            self._kinds[fault.error] += 1
            self._reasons.add(fault)

    @property
    def left(self) -> int:
        """Parts that are not done."""
        return self._parts - self._before - self._done

    @property
    def taken(self) -> int:
        """Items so far, errors or not, of all runs and of parts in hand."""
        return self._set.taken + sum(each.taken for each in self._in_hand.values())

    @property
    def errors(self) -> int:
        """Those of them that are errors."""
        return self._set.errors + sum(each.errors for each in self._in_hand.values())

    def figures(self) -> RunFigures:
        now = time.monotonic()
        in_hand = _Sum()
        for each in self._in_hand.values():
            in_hand.add(each.items, each.errors, each.seconds)
        working = now - self._working if self._working else 0.0
        return RunFigures(
            stage=self.stage,
            workers=self.workers,
            parts=self._parts,
            parts_before=self._before,
            parts_done=self._done,
            parts_items=self._parts_items,
            items=self._sum.items + in_hand.items,
            errors=self._sum.errors + in_hand.errors,
            kinds=dict(self._kinds),
            reasons=self._reasons.commonest(),
            media_seconds=self._sum.seconds + in_hand.seconds,
            wall_seconds=now - self._began,
            working_seconds=working,
            spent={what: self._spent[what] for what in WORK},
            eta_seconds=self._eta(working, in_hand),
            peak_bytes=self.peak_bytes,
            deaths=self.deaths,
            verified=self._verified,
            differing=self._differing,
            set_items=self._set.items,
            set_errors=self._set.errors,
            set_seconds=self._set.seconds,
            stopped=self.stopped,
        )

    def _count(self, line: Finished, into: _Sum) -> None:
        into.add(line.items, line.errors, line.seconds)
        if into is self._set:
            self._verified += line.verified
            self._differing += line.differing

    def _eta(self, working: float, in_hand: _Sum) -> float | None:
        """By items, where it is known how many there are, and else by parts."""
        if self._parts_items:
            done = self._sum.taken + in_hand.taken
            left = self._parts_items - self._set.taken - in_hand.taken
        else:
            done, left = self._done, self.left
        if left <= 0:
            return 0.0 if self._working else None
        if not done or working < ETA_SECONDS:
            return None
        return working / done * left


class _Sum:
    def __init__(self) -> None:
        self.items = self.errors = 0
        self.seconds = 0.0

    @property
    def taken(self) -> int:
        return self.items + self.errors

    def add(self, items: int, errors: int, seconds: float) -> None:
        self.items += items
        self.errors += errors
        self.seconds += seconds


class Reasons:
    """Counts why items are errors; what is rare among many is left out."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, fault: Fault | ItemError) -> None:
        reason = fault.reason
        for name in (fault.source, fault.key):
            if name:
                reason = reason.replace(name, "...")  # alike for many items
        text = f"{fault.error}: {reason}"
        if text in self._counts or len(self._counts) < MOST_REASONS:
            self._counts[text] += 1

    def commonest(self) -> dict[str, int]:
        return dict(self._counts.most_common(SHOWN_REASONS))
