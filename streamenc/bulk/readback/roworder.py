"""RowOrder: in which order the rows of a set are given, and who gives which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamenc.errors import UsageError
from streamenc.options import integer

BUFFER_ROWS = 4096


class Run(NamedTuple):
    """Rows of one shard that follow on each other: from `start` to before `stop`."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The order of an epoch: shards as they are numbered, or shuffled; and rows in blocks of them.

    All who read, the workers of all ranks, have about as many rows each, to within one. They have
    them from one end of the epoch's shards to the other: so most shards are read by one of them,
    and where there are more of them than shards, they share one.

    Args:
        shuffle: Whether shards come in another order in each epoch, and the rows of each reader
            mixed in blocks.
        seed: Of the shuffling. The same seed and epoch give the same order.
        buffer_rows: Of a block, which is held in memory.
        even: Leaves the last rows of an epoch out, so that all readers have the same number.

    Raises UsageError for a number that is none.
    """

    shuffle: bool = False
    seed: int = 0
    buffer_rows: int = BUFFER_ROWS
    even: bool = False

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0, 2**63 - 1)
        integer("buffer_rows", self.buffer_rows, 1, 2**31 - 1)

    def share(self, rows: int, of: tuple[int, int]) -> tuple[int, int]:
        """(first, behind the last) of so many rows that are those of one of several: (i, n)."""
        number, count = of
        if self.even:
            rows -= rows % count
        return rows * number // count, rows * (number + 1) // count

    def runs(self, counts: Sequence[int], epoch: int, first: int, behind: int) -> list[Run]:
        """Where the rows of an epoch are from one to before another, by the rows of each shard."""
        order = np.arange(len(counts))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        found, at = [], 0
        for shard in order.tolist():
            start, stop = max(0, first - at), min(counts[shard], behind - at)
            if start < stop:
                found.append(Run(shard, start, stop))
            at += counts[shard]
        return found

    def block(self, epoch: int, first: int, rows: int) -> list[int]:
        """In which order a block is given whose first row is the epoch's `first`."""
        if not self.shuffle:
            return list(range(rows))
        mixed = np.random.default_rng((self.seed, epoch, first)).permutation(rows)
        return [int(row) for row in mixed]


def checked_share(rank: int | None, world: int | None) -> tuple[int, int] | None:
    """(rank, world) where both are given, None where neither is. Raises UsageError."""
    if rank is None and world is None:
        return None
    if rank is None or world is None:
        raise UsageError(f"got rank={rank}, world={world}; give both, or neither")
    integer("world", world, 1, 2**31 - 1)
    return integer("rank", rank, 0, world - 1), world
