from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.merge import MergeOrder

DATA = np.zeros((1, 1), np.float32)


def info(time_base: Fraction) -> StreamInfo:
    return StreamInfo("audio", time_base, 1 / time_base, (1, None), "float32")


def at(pts: int) -> Frame:
    return Frame(DATA, pts, 1, 0)


def order(*bases: Fraction, wait: int = 100) -> MergeOrder:
    return MergeOrder([info(base) for base in bases], wait)


def test_picks_by_time_not_by_ticks() -> None:
    merge = order(Fraction(1, 48000), Fraction(1, 30), Fraction(1001, 30000))
    nobody = [False] * 3
    # 1600 / 48000 = 33.33 ms, 1 / 30 = 33.33 ms, 1001 / 30000 = 33.37 ms
    assert merge.pick([at(1600), at(1), at(1)], nobody, 0) == (0, None)
    assert merge.pick([at(1601), at(1), at(1)], nobody, 0) == (1, None)
    assert merge.pick([at(1602), at(2), at(1)], nobody, 0) == (2, None)
    assert merge.info.kind == "mux"
    assert merge.info.tracks[1].time_base == Fraction(1, 30)
    for track in merge.info.tracks:
        assert (track.time_base / merge.info.time_base).denominator == 1


def test_waits_for_an_empty_input_up_to_the_bound_and_then_not_again() -> None:
    merge = order(Fraction(1), Fraction(1))
    nobody = [False, False]
    assert merge.pick([None, None], nobody, 5) == (None, None)
    assert merge.pick([at(0), None], nobody, 10) == (None, 110)
    assert merge.pick([at(0), None], nobody, 109) == (None, 110)
    assert merge.pick([at(0), None], nobody, 110) == (0, None)
    assert merge.pick([at(1), None], nobody, 111) == (0, None)
    # It is back, although late, and is waited for again.
    assert merge.pick([at(2), at(0)], nobody, 112) == (1, None)
    assert merge.pick([at(2), None], nobody, 113) == (None, 213)


def test_an_input_that_ended_is_not_waited_for() -> None:
    merge = order(Fraction(1), Fraction(1))
    assert merge.pick([None, at(3)], [True, False], 0) == (1, None)


def test_without_a_bound_nothing_is_waited_for() -> None:
    merge = order(Fraction(1), Fraction(1), wait=0)
    assert merge.pick([None, at(3)], [False, False], 7) == (1, None)


def test_a_mux_in_a_mux_is_refused() -> None:
    inner = order(Fraction(1), Fraction(1)).info
    with pytest.raises(FitError, match="instead of nesting"):
        MergeOrder([inner, info(Fraction(1))], 0)


def test_what_cannot_come_is_not_waited_for() -> None:
    merge = order(Fraction(1), Fraction(1), Fraction(1))
    nobody = [False] * 3
    assert merge.pick([at(5), at(4), None], nobody, 0) == (None, 100)
    assert merge.pick([at(5), at(4), None], nobody, 0, stuck=True) == (1, None)
    assert merge.pick([None, None, None], nobody, 0, stuck=True) == (None, None)


def test_what_takes_its_time_to_be_complete_is_waited_for() -> None:
    """A latent of eight images cannot be there before its last one."""
    latents = StreamInfo("codes", Fraction(1, 1000), Fraction(10, 8), (1, None, 2, 2), "uint16")
    merge = MergeOrder([info(Fraction(1, 1000)), latents], 100)
    assert merge.pick([at(0), None], [False, False], 0) == (None, 800_000_100)
    assert merge.pick([None, at(0)], [False, False], 0) == (None, 100)
