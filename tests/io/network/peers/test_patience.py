"""How long a stream waits for subscribers, of which some came only to be waited for."""

from __future__ import annotations

import pytest

from streamenc.io.network.peers.patience import STRANGER_S, WASTED_SHARE, Patience


def test_who_takes_is_waited_for_as_long_as_agreed() -> None:
    patience = Patience(10.0)
    assert patience.left_s(0.0, taking=True, others=True, now_s=100.0) == 10.0
    assert patience.left_s(0.0, taking=False, others=False, now_s=100.0) == 10.0
    assert patience.left_s(0.0, taking=False, others=True, now_s=100.0) == STRANGER_S


def test_who_comes_after_waste_is_waited_for_less() -> None:
    patience = Patience(10.0)
    patience.waste(100.0, 104.0)
    assert patience.left_s(50.0, taking=True, others=True, now_s=104.0) == 10.0  # was there before
    assert patience.left_s(104.0, taking=True, others=True, now_s=104.0) == pytest.approx(6.0)
    assert patience.left_s(104.0, taking=False, others=True, now_s=104.0) == 0.0
    later_s = 104.0 + 4.0 / WASTED_SHARE
    assert patience.left_s(104.0, taking=True, others=True, now_s=later_s) == pytest.approx(10.0)


def test_time_that_was_wasted_for_two_at_once_counts_once() -> None:
    patience = Patience(10.0)
    patience.waste(100.0, 102.0)
    patience.waste(101.0, 103.0)
    assert patience.left_s(103.0, taking=True, others=True, now_s=103.0) == pytest.approx(
        7.0, abs=2 * WASTED_SHARE
    )


def test_one_that_comes_again_and_again_costs_a_small_share_of_the_time() -> None:
    patience, now_s, waited_s = Patience(10.0), 0.0, 0.0
    while now_s < 3600.0:
        joined_s = now_s
        now_s += 0.05  # it takes one, and then no more
        left_s = patience.left_s(joined_s, taking=True, others=True, now_s=now_s)
        patience.waste(now_s, now_s + left_s)
        now_s, waited_s = now_s + left_s, waited_s + left_s
    assert waited_s < 10.0 + 2 * WASTED_SHARE * 3600.0
