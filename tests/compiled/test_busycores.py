"""Whether others help, by what steps took: times here are made up, and no clock runs."""

from __future__ import annotations

from collections.abc import Callable

from streamenc.compiled.busycores import (
    LONGEST_PAUSE_SECONDS,
    MOST_BAD,
    STEADY_STEPS,
    STEPS_ALONE,
    STEPS_ON_TRIAL,
    Alone,
    Pace,
    Took,
)

MS = 1e-3
Machine = Callable[[bool], Took]


def free(together: bool) -> Took:
    return Took(5 * MS, 5 * MS, 0.48) if together else Took(9 * MS, 9 * MS)


def busy(together: bool) -> Took:
    """Each thread is kept away for half the time, and the second one takes from the first."""
    return Took(40 * MS, 11 * MS, 0.04) if together else Took(18 * MS, 9 * MS)


def half_busy(together: bool) -> Took:
    """The thread alone has a core, and a second one none."""
    return Took(12 * MS, 9 * MS, 0.15) if together else Took(9 * MS, 9 * MS)


def one_core(together: bool) -> Took:
    """Two threads that share the units of one core, and are as fast as one."""
    return Took(9 * MS, 9 * MS, 0.5) if together else Took(9 * MS, 9 * MS)


def slow(together: bool) -> Took:
    """Several threads are hardly faster."""
    return Took(8.5 * MS, 8.5 * MS, 0.3) if together else Took(9 * MS, 9 * MS)


class Run:
    def __init__(self, every: float) -> None:
        self.pace, self.alone = Pace(), Alone()
        self.now, self.every = 100.0, every
        self.choices: list[bool] = []

    def steps(self, count: int, machine: Machine) -> list[bool]:
        made = []
        for _ in range(count):
            together = self.pace.together(self.alone, self.now)
            took = machine(together)
            self.pace.note(self.alone, took, self.now + took.seconds)
            self.now += max(self.every, took.seconds)
            made.append(together)
        return made


def test_free_cores_are_taken_after_a_trial() -> None:
    choices = Run(0.08).steps(100, free)
    assert choices == [False] * STEPS_ALONE + [True] * (100 - STEPS_ALONE)


def test_busy_cores_are_left_at_once_and_not_tried() -> None:
    run = Run(0.08)
    run.steps(50, free)
    choices = run.steps(500, busy)
    assert choices[:2] == [True, False]
    assert sum(choices) <= 2


def test_they_are_taken_again_within_two_seconds() -> None:
    for every in (0.0, 0.02, 0.08):
        run = Run(every)
        run.steps(300, busy)
        begin = run.now
        while not run.pace._together:
            run.steps(1, free)
        assert run.now - begin < 2.0


def test_what_brings_nothing_is_tried_rarely() -> None:
    for machine in (half_busy, one_core, slow):
        for every, share in ((0.0, 0.01), (0.08, 0.06)):
            run = Run(every)
            run.steps(200, machine)
            choices = run.steps(1000, machine)
            assert 0 < sum(choices) <= share * 1000
            assert not run.pace._together


def test_one_good_step_is_not_enough() -> None:
    run = Run(0.08)
    run.steps(STEPS_ALONE, half_busy)
    run.steps(STEPS_ON_TRIAL - 1, free)
    assert run.steps(2, half_busy) == [True, False]


def test_one_bad_step_among_good_ones_changes_nothing() -> None:
    run = Run(0.08)
    run.steps(50, free)
    for _ in range(10):
        assert all(run.steps(1, slow) + run.steps(6, free))


def test_several_bad_steps_are_enough() -> None:
    run = Run(0.08)
    run.steps(50, free)
    assert run.steps(MOST_BAD + 1, slow) == [True] * MOST_BAD + [False]


def test_pauses_are_short_again_after_good_times() -> None:
    run = Run(0.08)
    run.steps(500, half_busy)
    assert run.pace._pause == LONGEST_PAUSE_SECONDS
    run.steps(STEADY_STEPS - 1, free)
    assert run.pace._pause == LONGEST_PAUSE_SECONDS
    run.steps(200, free)
    run.steps(1, half_busy)
    begin = run.now
    while not run.pace._together:
        run.steps(1, free)
    assert run.now - begin < 0.5


def test_steps_of_a_new_kind_run_alone_first() -> None:
    run = Run(0.08)
    run.steps(50, free)
    run.alone = Alone()
    assert run.steps(STEPS_ALONE + 1, free) == [False] * STEPS_ALONE + [True]
