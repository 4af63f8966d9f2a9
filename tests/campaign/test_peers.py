"""Hostile ZeroMQ peers, for a moment each: what they cost, and what a good neighbour gets."""

from __future__ import annotations

import pytest

from tests.campaign.peers import CASES, run

# Of the gravest kinds, one in each mode. Lateness is only bounded where nothing else runs.
SHORT = (
    "pub: messages unpaced",
    "pub: topics of 60 bytes without end",
    "credit: empty parts without end",
    "credit: never takes",
    "sub: parts without end",
)


@pytest.mark.process
@pytest.mark.parametrize("case", SHORT)
def test_for_a_moment(case: str) -> None:
    (row,) = run(0, 1.0, (case,))
    assert row["got"] >= 0.9 * row.get("sent", 0), row
    assert row["got"] >= 0.5 * row["due"], row  # of a machine that may be busy otherwise
    assert row["grown_mb"] < 200, row
    assert row["late_ms"] < 1000, row


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(900)
def test_all_of_them() -> None:
    rows = run(0, 8.0)
    assert [row["case"] for row in rows] == list(CASES)
    assert not [row for row in rows if row["got"] < 0.9 * row["due"] or row["grown_mb"] >= 200]
