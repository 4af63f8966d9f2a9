"""The figures of a run: sums of what was finished and what is in hand, and what is left of it."""

from __future__ import annotations

import pytest

from streamenc.bulk import runfigures
from streamenc.bulk.items import Fault
from streamenc.bulk.manifest import Finished
from streamenc.bulk.partwork import Done, Progress
from streamenc.bulk.runfigures import Reasons, RunTally


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(runfigures, "time", clock)
    return clock


def line(part: int, items: int = 8, errors: int = 2) -> Finished:
    return Finished(
        part=part,
        files=(),
        source="",
        items=items,
        errors=errors,
        seconds=80.0,
        frames=(),
        verified=1,
    )


def test_a_part_that_is_done_anew_counts_once(clock):
    tally = RunTally(2)
    tally.work(3, 30, [line(0)])
    for _ in range(2):
        tally.told(Progress(1, 5, 1, 50.0, {"decoding": 1.0, "encoding": 3.0}))
        figures = tally.figures()
        assert (figures.items, figures.errors, figures.media_seconds) == (5, 1, 50.0)
        tally.lost(1)
    assert tally.figures().items == 0
    faults = [Fault(f"k{n}", f"/in/k{n}", f"/in/k{n}: no sound", "MediaError") for n in range(2)]
    tally.finish(Done(line(1), faults))
    clock.now += 10
    figures = tally.figures()
    assert (figures.items, figures.errors, figures.deaths, figures.verified) == (8, 2, 2, 2)
    assert (figures.set_items, figures.set_errors, figures.set_seconds) == (16, 4, 160.0)
    assert figures.kinds == {"MediaError": 2}
    assert figures.reasons == {"MediaError: ...: no sound": 2}
    assert (figures.parts, figures.parts_before, figures.parts_done) == (3, 1, 1)
    # Time that was spent in vain was spent.
    assert figures.bound_by == "encoding" and figures.spent["encoding"] == 6.0
    assert figures.times_real_time == 8.0 and figures.times_real_time_per_worker == 4.0
    assert figures.hours_per_second == pytest.approx(8 / 3600)


@pytest.mark.parametrize(("items", "eta"), [(40, 20.0), (0, 20.0)])
def test_how_long_it_takes_yet(clock, items, eta):
    """By items where it is known how many there are, else by parts; not before it can be known."""
    tally = RunTally(1)
    assert tally.figures().eta_seconds is None
    tally.work(4, items, [line(0)])
    clock.now += 1
    tally.finish(Done(line(1), []))
    assert tally.figures().eta_seconds is None
    clock.now += 9
    assert tally.figures().eta_seconds == eta
    if items:
        tally.told(Progress(2, 5, 5, 1.0, {}))
        assert tally.figures().eta_seconds == 5.0


def test_reasons_are_bounded(monkeypatch):
    monkeypatch.setattr(runfigures, "MOST_REASONS", 10)
    reasons = Reasons()
    for number in range(100):
        reasons.add(Fault("key", "source", f"reason {number % 50}", "InputError"))
    assert len(reasons._counts) == 10
    assert reasons.commonest() == {f"InputError: reason {n}": 2 for n in range(3)}
