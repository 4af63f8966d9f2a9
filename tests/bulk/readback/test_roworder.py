"""In which order rows are given, and who gives which of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.bulk.readback.roworder import RowOrder, Run, checked_share
from streamenc.errors import UsageError


@given(
    counts=st.lists(st.integers(0, 9), max_size=6),
    world=st.integers(1, 5),
    workers=st.integers(1, 7),
    shuffle=st.booleans(),
    even=st.booleans(),
)
def test_every_row_is_given_once(
    counts: list[int], world: int, workers: int, shuffle: bool, even: bool
) -> None:
    order = RowOrder(shuffle, seed=3, even=even)
    rows, shares, given_rows = sum(counts), [], []
    for rank in range(world):
        first, behind = order.share(rows, (rank, world))
        for worker in range(workers):
            start, stop = order.share(behind - first, (worker, workers))
            runs = order.runs(counts, 2, first + start, first + stop)
            mine = [(run.shard, row) for run in runs for row in range(run.start, run.stop)]
            shares.append(len(mine))
            given_rows += mine
    all_rows = {(shard, row) for shard, count in enumerate(counts) for row in range(count)}
    assert len(set(given_rows)) == len(given_rows) and set(given_rows) <= all_rows
    if even:
        assert len(set(shares)) == 1
        assert rows - sum(shares) < world * workers
    else:
        assert set(given_rows) == all_rows
        assert max(shares) - min(shares) <= 2


def test_shards_are_shuffled_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [run.shard for run in RowOrder(True, seed).runs([2] * 20, epoch, 0, 40)]

    assert order(1, 0) == order(1, 0) != list(range(20))
    assert sorted(order(1, 0)) == list(range(20))
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)
    assert RowOrder().runs([2, 3, 1], 5, 1, 5) == [Run(0, 1, 2), Run(1, 0, 3)]


def test_rows_of_a_block_are_mixed() -> None:
    mixed = RowOrder(True, 1).block(0, 0, 30)
    assert sorted(mixed) == list(range(30)) != mixed
    assert mixed == RowOrder(True, 1).block(0, 0, 30) != RowOrder(True, 1).block(0, 30, 30)
    assert RowOrder(False, 1).block(0, 0, 30) == list(range(30))


def test_numbers_that_are_none() -> None:
    assert checked_share(None, None) is None and checked_share(1, 3) == (1, 3)
    for rank, world in ((0, None), (None, 2), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UsageError, match=r"rank|world"):
            checked_share(rank, world)
    with pytest.raises(UsageError, match="seed"):
        RowOrder(seed=-1)
    with pytest.raises(UsageError, match="buffer_rows"):
        RowOrder(buffer_rows=0)
