"""Streams of a key, over several processes."""

from __future__ import annotations

from pathlib import Path

from streamenc.serve.tally import Tally


def test_alone() -> None:
    tally = Tally()
    assert tally.take("robot", 1, 2) and not tally.take("robot", 2, 2)
    assert tally.total("robot", 2) == 2
    tally.tell(lambda owner: 5)
    tally.close()


def test_several(tmp_path: Path) -> None:
    how = (3, tmp_path / "tally", ["b", "a", "a"])
    with Tally(0, *how) as first, Tally(1, *how) as second:
        assert first.take("a", 0, 3) and second.take("a", 0, 3) and first.take("a", 1, 3)
        # Three are there, wherever one asks.
        assert not second.take("a", 1, 3) and not first.take("a", 2, 3)
        assert second.take("b", 0, 3)
        assert (first.total("a", 2), second.total("a", 1), first.total("b", 0)) == (3, 3, 1)
        second.tell(lambda owner: 0)
        assert first.take("a", 2, 3)
        # Whose key is new, or has none, counts for itself.
        assert first.take("c", 0, 1) and first.total("c", 1) == 1
        with Tally(0, *how):  # its successor, after it died
            assert second.total("a", 0) == 0
    assert (tmp_path / "tally").stat().st_mode & 0o777 == 0o600
