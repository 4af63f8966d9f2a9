"""Pages: the states of many lanes, of which a step takes some by index.

A step of a batch is told for each row which lane it is of. What of a lane's state is small (tails
of convolutions, positions, what an LSTM carries) lies side by side, one row a lane: one gather
takes it out for the whole batch, and each new leaf is written back to its lanes. What layers take
as `Paged` (rings of keys and values) is never copied: they read and write it where it lies. So a
step costs what its batch costs, and lanes that do not step cost nothing at all.

A batch that is larger than the lanes that step is filled up with a spare lane, which holds a state
as any stream leaves it and stays so: what its rows compute is written to another one, and nobody
reads it. A lane that went on by itself would come to positions that no table has.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.state import Paged, State, leaves
from streamenc_kernels import write_rows

# What lies side by side in a row begins at a multiple of so many bytes: kernels load so many.
ALIGNMENT = 16
_PLACES = itertools.count()


class _Leaf(NamedTuple):
    """Where a leaf of the tree lies.

    whole   Of all lanes, (lanes, ...): memory of its own, or a view into the rows.
    rows    Which of the rows; None for what is `Paged`.
    start, stop  Which numbers of these rows.
    """

    whole: Tensor
    rows: int | None
    start: int = 0
    stop: int = 0


_Tree: TypeAlias = "_Leaf | None | tuple[_Tree, ...]"


class Pages:
    """The states of `capacity` lanes, and the spare ones.

    Args:
        one_lane: A state in mid-stream, of one lane: the form of all of them.

    Attributes:
        tensors: What holds it all.
        place: A number of these pages alone; for graphs, which remember their addresses.
    """

    def __init__(self, model: Model, one_lane: State, capacity: int) -> None:
        lanes = capacity + 2
        self.capacity = capacity
        self._device = model.like.device
        paged = {id(leaf) for leaf in model.pages(one_lane)}
        ends: dict[torch.dtype, int] = {}
        places: dict[int, tuple[int, int]] = {}
        small = [leaf for leaf in leaves(one_lane) if id(leaf) not in paged]
        several = [dtype for dtype, count in Counter(x.dtype for x in small).items() if count > 1]
        for leaf in small:
            # A single leaf is nobody's neighbour: without gaps it is contiguous.
            each = ALIGNMENT // leaf.element_size() if leaf.dtype in several else 1
            start = ends.get(leaf.dtype, 0)
            places[id(leaf)] = start, start + leaf.numel()
            ends[leaf.dtype] = math.ceil((start + leaf.numel()) / each) * each
        dtypes = list(ends)
        self._rows = [
            torch.zeros(lanes, ends[dtype], dtype=dtype, device=self._device) for dtype in dtypes
        ]

        def laid(part: State) -> _Tree:
            if isinstance(part, Tensor):
                shape = lanes, *part.shape[1:]
                if id(part) in paged:
                    return _Leaf(part.new_zeros(shape), None)
                rows, (start, stop) = dtypes.index(part.dtype), places[id(part)]
                return _Leaf(self._rows[rows][:, start:stop].view(shape), rows, start, stop)
            return None if part is None else tuple(laid(inner) for inner in part)

        self._tree = laid(one_lane)
        self._leaves = list(_in_order(self._tree))
        self.tensors = [*self._rows, *(leaf.whole for leaf in self._leaves if leaf.rows is None)]
        self.place = next(_PLACES)
        self.put([self.spare], one_lane)

    @property
    def spare(self) -> int:
        """The lane that fills a batch up; what it computes goes to the one behind it."""
        return self.capacity

    def put(self, lanes: Sequence[int], state: State) -> None:
        """Copies a state of as many rows into lanes."""
        wholes = [leaf.whole for leaf in self._leaves]
        write_rows(wholes, list(leaves(state)), lanes=self.places(lanes, len(lanes))[0])

    def lane(self, index: int) -> State:
        """The state of one lane where it lies: views of batch 1."""

        def view(part: _Tree) -> State:
            if isinstance(part, _Leaf):
                return part.whole[index : index + 1]
            return None if part is None else tuple(view(inner) for inner in part)

        return view(self._tree)

    def places(self, lanes: Sequence[int], batch: int) -> Tensor:
        """What `step` is told, (2, batch) int64 on the lanes' device: where each row is read, and
        where it is written; the lanes, and the spare one for the rest of the batch. Nobody waits
        for the copy."""
        places = np.empty((2, batch), dtype=np.int64)
        places[:, : len(lanes)] = lanes
        places[:, len(lanes) :] = [[self.spare], [self.spare + 1]]
        # CUDA has taken what is not pinned when the call returns.
        return torch.from_numpy(places).to(self._device, non_blocking=True)

    def step(self, model: Model, x: Tensor, places: Tensor) -> Tensor:
        """One step of the lanes at `places`, committed; all other streams' stay to the bit.

        x       (batch, channels, hop, ...).
        places  (2, batch) int64 on the device; see `places`.
        Returns what the model gives, (batch, ...).
        """
        read, written = places
        taken = [rows.index_select(0, read) for rows in self._rows]

        def held(part: _Tree) -> State:
            if isinstance(part, _Leaf):
                if part.rows is None:
                    return Paged(part.whole, read)
                one = taken[part.rows][:, part.start : part.stop]
                return one.view(len(one), *part.whole.shape[1:])
            return None if part is None else tuple(held(inner) for inner in part)

        y, after = model.step(x, held(self._tree))
        moved = [
            (leaf.whole, value)
            for leaf, value in zip(self._leaves, _values(after), strict=True)
            if not isinstance(value, Paged)
        ]
        write_rows([whole for whole, _ in moved], [value for _, value in moved], lanes=written)
        return y


def by_index(model: Model, x: Tensor, pages: Pages, places: Tensor) -> Tensor:
    """One step, operator by operator; see `Pages.step`."""
    return pages.step(model, x, places)


def _in_order(tree: _Tree) -> Iterator[_Leaf]:
    if isinstance(tree, _Leaf):
        yield tree
    elif tree is not None:
        for part in tree:
            yield from _in_order(part)


def _values(state: State) -> Iterator[Tensor | Paged]:
    """The leaves of a state that a step gives, in the order of `leaves`."""
    if isinstance(state, Tensor | Paged):
        yield state
    elif state is not None:
        for part in state:
            yield from _values(part)
