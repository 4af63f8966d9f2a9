"""TorchRows: the rows of a set for torch, each once over all ranks and workers, and resumable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from streamenc.bulk.readback.roworder import RowOrder
from streamenc.bulk.readback.rowsource import RowSource
from streamenc.bulk.readback.rowwalk import Place, walk
from streamenc.bulk.readback.shardrows import RowDict
from streamenc.errors import UsageError
from streamenc.options import integer

VERSION = 1


class TorchRows(IterableDataset[RowDict]):
    """Rows as dicts, with tensors for tokens: int64 for codes.

    An epoch's rows are shared out over the ranks, and each rank's over the workers of its
    DataLoader. Which rank this is, `torch.distributed` tells where it is initialised as iteration
    begins, if it was not given.

    `state_dict` and `load_state_dict` are what torchdata's StatefulDataLoader asks for: in each
    worker it notes with each batch where that worker stands, so that after a resumption no row
    comes twice and none is missing, however many batches lay ready.

    Args:
        share: (rank, world), or None.

    Attributes:
        epoch: Which order a shuffled set has; see `set_epoch`.
    """

    def __init__(self, source: RowSource, order: RowOrder, share: tuple[int, int] | None) -> None:
        self.source, self.order, self._share = source, order, share
        # Workers that live on through epochs, and those that begin one, see the same.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.untyped_storage().share_memory_()
        self._place = Place()
        self._resumes: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch, with its number: shuffled rows come in another order."""
        self._epoch.fill_(integer("epoch", epoch, 0, 2**62))

    @property
    def rows(self) -> int:
        """How many rows this rank gives in an epoch."""
        first, behind = self._of_rank()
        return behind - first

    def __iter__(self) -> Iterator[RowDict]:
        state, self._resumes = self._resumes, None
        self._place = Place()
        if state is not None:
            self._check_state(state)
            self.set_epoch(state["epoch"])
            self._place = Place(state["over"], state["given"])
        return self._rows(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands, as plain numbers and words."""
        if self._resumes is not None:
            return dict(self._resumes)
        return self._identity() | self._place._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where the state was taken.

        Raises UsageError where it is of another set, order, rank or number of ranks. So does the
        iteration, where it is of another worker.
        """
        self._check_state(state, worker=False)
        self._resumes = dict(state)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned has no process group, so it is told its rank.
        return self.__dict__ | {"_share": self._rank_and_world()}

    def _rows(self, epoch: int) -> Iterator[RowDict]:
        share = self._of_worker()
        for row, place in walk(self.source, self.order, epoch, share, self._place):
            self._place = place
            yield {name: _tensor(value) for name, value in row.items()}

    def _of_rank(self) -> tuple[int, int]:
        rank, world = self._rank_and_world()
        return self.order.share(sum(self.source.counts), (rank, world))

    def _of_worker(self) -> tuple[int, int]:
        first, behind = self._of_rank()
        start, stop = self.order.share(behind - first, _worker())
        return first + start, first + stop

    def _rank_and_world(self) -> tuple[int, int]:
        if self._share is not None:
            return self._share
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def _identity(self) -> dict[str, Any]:
        """What a state is of."""
        rank, world = self._rank_and_world()
        worker, workers = _worker()
        order = self.order
        return {
            "version": VERSION,
            "set": self.source.digest(),
            "order": f"{order.shuffle} {order.seed} {order.buffer_rows} {order.even}",
            "rank": rank,
            "world": world,
            "worker": worker,
            "workers": workers,
            "epoch": self.epoch,
        }

    def _check_state(self, state: dict[str, Any], worker: bool = True) -> None:
        here = self._identity()
        numbers = (*Place._fields, "epoch")
        if state.keys() != here.keys() | set(numbers) or state["version"] != VERSION:
            raise UsageError("this is no state of the rows of a set, or one of another version")
        if any(type(state[name]) is not int or state[name] < 0 for name in numbers):
            raise UsageError("the state of these rows is damaged: begin the epoch anew")
        if state["set"] != here["set"]:
            raise UsageError(
                "this state is of another set, or of other columns or another layout of it, or it "
                "has had more shards since: open the same as then, or begin the epoch anew"
            )
        if state["order"] != here["order"]:
            raise UsageError(
                f"this state is of another order (shuffle, seed, buffer_rows, even: "
                f"{state['order']}); these rows have {here['order']}: give the same"
            )
        places = ("rank", "world", "worker", "workers") if worker else ("rank", "world")
        if any(state[name] != here[name] for name in places):
            raise UsageError(
                f"this state is of rank {state['rank']} of {state['world']}, worker "
                f"{state['worker']} of {state['workers']}; here it is rank {here['rank']} of "
                f"{here['world']}, worker {here['worker']} of {here['workers']}. Rows are shared "
                "out by these numbers: go on with the same ranks and num_workers, or begin the "
                "epoch anew (set_epoch) with others"
            )


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind in "ui":
        value = value.astype(np.int64)
    return torch.from_numpy(value if value.flags.writeable else value.copy())
