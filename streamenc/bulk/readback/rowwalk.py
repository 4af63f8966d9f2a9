"""Rows of an epoch in their order, with where each stands, so that one can go on behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from streamenc.bulk.readback.roworder import RowOrder
from streamenc.bulk.readback.rowsource import RowSource
from streamenc.bulk.readback.shardrows import RowDict

BUFFER_BYTES = 256 * 2**20


class Place(NamedTuple):
    """How far a reader has come.

    Attributes:
        over: Rows in blocks that are over.
        given: Rows of the block in hand.
    """

    over: int = 0
    given: int = 0


def walk(
    source: RowSource, order: RowOrder, epoch: int, share: tuple[int, int], place: Place
) -> Iterator[tuple[RowDict, Place]]:
    """What is left of the rows of an epoch from one to before another, and the place behind each.

    One block is in memory at a time: as many rows as `order` says, or fewer where they are long.
    """
    first, behind = share
    over, given = place
    runs = order.runs(source.counts, epoch, first + over, behind)
    for block in _blocks(source.read(runs), order):
        mixed = order.block(epoch, first + over, len(block))
        ended = over + len(block)
        for count, number in enumerate(mixed[given:], given + 1):
            yield block[number], Place(ended) if count == len(block) else Place(over, count)
        over, given = ended, 0


def _blocks(rows: Iterator[RowDict], order: RowOrder) -> Iterator[list[RowDict]]:
    """Rows that are mixed with each other: which they are depends on nothing but the rows."""
    most = order.buffer_rows if order.shuffle else 1
    block: list[RowDict] = []
    held = 0
    for row in rows:
        block.append(row)
        held += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        if len(block) >= most or held >= BUFFER_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block
