"""Numbers of one track: gaps, repetitions, and numbers that are another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import WireError
from streamenc.io.network.numbering import MAX_GAPS, Numbering

FRAMES = 60


def numbers(joined: bool, seqs: list[int]) -> tuple[Numbering, list[int], int, int]:
    """What was delivered, lost and missed."""
    made, got, lost, missed = Numbering(joined), [], 0, 0
    for seq in seqs:
        try:
            step = made.take(seq, resent=False)
        except WireError:
            continue
        if step is not None:
            got.append(seq)
            lost, missed = lost + step.lost, missed + step.missed
    return made, got, lost, missed


@given(st.sets(st.integers(0, FRAMES - 1), min_size=1), st.booleans())
def test_gaps_are_lost_and_what_came_before_is_missed(arrived: set[int], joined: bool) -> None:
    seqs = sorted(arrived)
    twice = [seq for pair in zip(seqs, seqs, strict=True) for seq in pair]
    made, got, lost, missed = numbers(joined, twice)
    assert got == seqs and made.due == seqs[-1] + 1
    assert (missed if joined else 0) == (seqs[0] if joined else 0)
    assert lost + missed + len(seqs) == made.due


@given(
    st.lists(
        st.tuples(
            st.integers(0, FRAMES - 1),
            st.lists(
                st.integers(3, 5000) | st.sampled_from([2**40, 2**63 - 1 - FRAMES]), max_size=30
            ),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_frames_after_false_numbers_are_delivered_once_and_in_order(
    forged: list[tuple[int, list[int]]], joined: bool
) -> None:
    """However many false ones there are, more than gaps are remembered among them. (One just after
    the next leaves no room for a proof.)
    """
    said = dict(forged)
    seqs: list[tuple[int, bool]] = []
    for seq in range(FRAMES):
        seqs.append((seq, True))
        seqs += [(seq + ahead, False) for ahead in said.get(seq, ())]
    made, got, lost = Numbering(joined), [], 0
    for seq, own in seqs:
        try:
            step = made.take(seq, resent=False)
        except WireError:
            assert not own
            continue
        if step is not None:
            lost += step.lost
            if own:
                got.append(seq)
    assert got == list(range(FRAMES)), MAX_GAPS
    assert made.due is not None and made.due >= FRAMES and lost >= made.due - FRAMES - 31


def test_a_single_frame_that_was_overtaken_is_too_late() -> None:
    _, got, lost, _ = numbers(True, [0, 1, 3, 2, 4])
    assert (got, lost) == ([0, 1, 3, 4], 1)


def test_what_is_resent_belies_nothing() -> None:
    made = Numbering(True)
    for seq in (0, 9):
        made.take(seq, resent=False)
    assert made.take(5, resent=True) is None and made.due == 10
    step = made.take(5, resent=False)
    assert step is not None and (step.lost, step.belied, made.due) == (-4, True, 6)


def test_after_a_false_number_a_gap_needs_four_in_a_row() -> None:
    made = Numbering(True)
    for seq in (0, 9, 1):
        made.take(seq, resent=False)
    for seq in (5, 6, 7, 12, 13, 14):
        with pytest.raises(WireError, match="where 2 was due"):
            made.take(seq, resent=False)
    step = made.take(15, resent=False)
    assert step is not None and (step.lost, step.follows) == (13, False)
