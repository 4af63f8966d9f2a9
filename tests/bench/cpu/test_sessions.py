"""The search of a knee."""

from __future__ import annotations

import pytest

from bench.cpu.sessions import TRIES, Knee


def search(keeps_up: int, limit: int) -> tuple[int, list[int]]:
    """The knee where so many keep up, and which counts were looked at."""
    knee = Knee(80.0, limit)
    seen = []
    while knee.next is not None:
        seen.append(knee.next)
        knee.see([10.0, 70.0 if knee.next <= keeps_up else 90.0])
        assert len(seen) < 40
    return knee.most, seen


@pytest.mark.parametrize("keeps_up", [0, 1, 2, 3, 5, 8, 13, 31, 32, 63, 64])
def test_the_knee_is_found_by_doubling_and_halving(keeps_up: int) -> None:
    most, seen = search(keeps_up, 64)
    assert most == keeps_up
    # Some 2 log2 of it; a count that is too many is looked at again.
    assert len(seen) <= 4 * max(keeps_up, 1).bit_length() + TRIES


def test_the_order_is_that_of_a_search() -> None:
    assert search(5, 64) == (5, [1, 2, 4, 8, 8, 6, 6, 5])


def test_a_bad_moment_is_not_a_knee() -> None:
    knee = Knee(80.0, 4)
    knee.see([10.0])
    assert (knee.next, knee.again) == (2, False)
    knee.see([500.0])
    assert (knee.next, knee.again) == (2, True)
    knee.see([10.0])
    assert (knee.next, knee.again) == (4, False)
    knee.see([10.0])
    assert (knee.next, knee.most) == (None, 4)
