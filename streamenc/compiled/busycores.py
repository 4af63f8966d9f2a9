"""Whether steps take several threads, by what they took: where cores are busy, one is faster.

A second thread helps where it has a core; where others want that too, it takes from the first one
what it gives. Nobody says beforehand which it is, so this measures: how long steps take with one
thread and with several, how much of that the thread was kept from computing, and how much of the
work the others did.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Of a running mean, what the newest step is of it.
NEWEST = 0.25
# Cores are busy where a thread is kept from computing for so much of its steps.
BUSY = 0.1
# With others, a step is to take less than this part of what it takes alone; they do this part of
# the work at least, where they have a core of their own.
FASTER, LEAST_HELP = 0.9, 0.2
# So many steps alone before others are tried, and so many good ones with them before they stay.
STEPS_ALONE, STEPS_ON_TRIAL = 3, 3
# They go after so many bad steps of the last ones, and after a single one that took so much longer
# than alone.
MOST_BAD, LAST_STEPS, SLOWER = 2, 5, 1.25
# After a trial that failed, the next one comes so much later, and after each further one later by
# this factor, until so many good steps follow each other.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LONGER = 0.2, 1.6, 2.0
STEADY_STEPS = 25


@dataclass(frozen=True, slots=True)
class Took:
    """What a step took.

    seconds    From its begin to its end.
    computing  Seconds of these in which its thread had a core.
    help       The part of the shared work that others did; None where it ran alone.
    """

    seconds: float
    computing: float
    help: float | None = None


@dataclass(slots=True)
class Alone:
    """Seconds that steps of one kind take with one thread, a running mean."""

    steps: int = 0
    seconds: float = 0.0

    def note(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += (seconds - self.seconds) * max(NEWEST, 1 / self.steps)


@dataclass(slots=True)
class Pace:
    """Of the steps of a process, one after the other; times are of a clock in seconds."""

    _together: bool = False
    _kept_away: float = 0.0
    _good: int = 0
    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=LAST_STEPS))
    _pause: float = FIRST_PAUSE_SECONDS
    _next_trial: float = 0.0

    def together(self, alone: Alone, now: float) -> bool:
        """Whether the next step is to have others' help. `alone` is of steps like it."""
        if alone.steps < STEPS_ALONE:
            return False
        return self._together or (self._kept_away < BUSY and now >= self._next_trial)

    def note(self, alone: Alone, took: Took, now: float) -> None:
        """What the step took for which `together` was asked."""
        kept_away = max(0.0, took.seconds - took.computing) / max(took.seconds, 1e-9)
        if took.help is None:
            alone.note(took.seconds)
            self._kept_away += (kept_away - self._kept_away) * NEWEST
            return
        good = took.help >= LEAST_HELP and took.seconds < FASTER * alone.seconds
        self._good = self._good + 1 if good else 0
        if not self._together:
            if not good:
                self._part(now)
            elif self._good == STEPS_ON_TRIAL:
                self._together = True
                self._last.clear()
            return
        self._last.append(good)
        if self._last.count(False) >= MOST_BAD or took.seconds > SLOWER * alone.seconds:
            self._part(now)
        elif self._good >= STEADY_STEPS:
            self._pause = FIRST_PAUSE_SECONDS

    def _part(self, now: float) -> None:
        self._together, self._good = False, 0
        self._next_trial = now + self._pause
        self._pause = min(self._pause * LONGER, LONGEST_PAUSE_SECONDS)
