"""Rows for torch: each once over ranks and workers, and exact after a resumption."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from streamenc import bulk
from streamenc.bulk.readback import rowwalk, torchrows
from streamenc.bulk.readback.torchrows import TorchRows
from streamenc.bulk.tokendataset import TokenSet
from streamenc.errors import UsageError
from tests.support.tokensets import codes_of, make_set

COUNTS = (5, 0, 4, 1, 7)
ROWS = sum(COUNTS)

AsWorker = Callable[[int, int], None]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return bulk.open(make_set(tmp_path_factory.mktemp("sets") / "set", COUNTS))


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> AsWorker:
    def set_worker(number: int, count: int) -> None:
        info = SimpleNamespace(id=number, num_workers=count)
        monkeypatch.setattr(torchrows, "get_worker_info", lambda: info)

    return set_worker


def ranks(rows: Any) -> list[int]:
    return [row["rank"] for row in rows]


def moved(rows: TorchRows) -> TorchRows:
    """As a process that is spawned gets it."""
    made: TorchRows = pickle.loads(pickle.dumps(rows))
    return made


def test_a_row_has_tensors(tokens: TokenSet) -> None:
    for number, row in enumerate(tokens.torch()):
        assert row["key"] == f"row {number}" and row["codes"].dtype == torch.int64
        assert (row["codes"].numpy() == codes_of(number)).all()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 3), (3, 1), (4, 9), (1, 20)])
def test_each_row_once(
    tokens: TokenSet, as_worker: AsWorker, shuffle: bool, world: int, workers: int
) -> None:
    came = []
    for rank in range(world):
        rows = tokens.torch(shuffle=shuffle, seed=1, rank=rank, world=world, buffer_rows=3)
        counted = 0
        for worker in range(workers):
            as_worker(worker, workers)
            mine = ranks(moved(rows))
            counted += len(mine)
            came += mine
        assert counted == rows.rows
    assert sorted(came) == list(range(ROWS))
    assert shuffle == (came != sorted(came))


def test_orders(tokens: TokenSet) -> None:
    rows = tokens.torch(shuffle=True, seed=5, buffer_rows=4)
    first = ranks(rows)
    assert first == ranks(rows) == ranks(tokens.torch(shuffle=True, seed=5, buffer_rows=4))
    rows.set_epoch(1)
    assert sorted(ranks(rows)) == sorted(first) and ranks(rows) != first
    assert ranks(tokens.torch(shuffle=True, seed=6, buffer_rows=4)) != first


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("held", [1, 10**9])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumption_is_exact(
    tokens: TokenSet,
    as_worker: AsWorker,
    monkeypatch: pytest.MonkeyPatch,
    shuffle: bool,
    held: int,
    workers: int,
) -> None:
    monkeypatch.setattr(
        rowwalk, "BUFFER_BYTES", 60 * held
    )  # blocks of few rows, or by their number

    def rows() -> TorchRows:
        return tokens.torch(shuffle=shuffle, seed=2, buffer_rows=3)

    for worker in range(workers):
        as_worker(worker, workers)
        whole = rows()
        whole.set_epoch(4)
        wanted = ranks(whole)
        for taken in range(len(wanted) + 1):
            begun = rows()
            begun.set_epoch(4)
            running: Iterator[Any] = iter(begun)
            for number in range(taken):
                assert next(running)["rank"] == wanted[number]
            state = begun.state_dict()
            resumed = rows()
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state  # before its first row, too
            assert ranks(resumed) == wanted[taken:]
            assert resumed.epoch == 4
            assert ranks(resumed) == wanted, "the next epoch begins at its beginning"


def test_states_of_something_else_are_refused(tokens: TokenSet, as_worker: AsWorker) -> None:
    rows = tokens.torch(rank=0, world=2)
    state = rows.state_dict()
    other = bulk.open(tokens.output, columns=["key"]).torch(rank=0, world=2)
    for refusing, told in (
        (tokens.torch(rank=1, world=2), "rank 0 of 2.* here it is rank 1 of 2"),
        (tokens.torch(), "go on with the same ranks"),
        (tokens.torch(rank=0, world=2, shuffle=True), "another order"),
        (other, "other columns"),
    ):
        with pytest.raises(UsageError, match=told):
            refusing.load_state_dict(state)
    for changes in ({"version": 2}, {"over": -1}, {"given": "1"}, {"more": 1}):
        with pytest.raises(UsageError, match=r"no state|damaged"):
            rows.load_state_dict(state | changes)
    rows.load_state_dict(state)
    as_worker(0, 2)
    with pytest.raises(UsageError, match="worker 0 of 1; here .* worker 0 of 2"):
        iter(rows)


def test_ranks_come_from_torch_distributed(
    tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tokens.torch()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert ranks(rows) == list(range(ROWS // 2, ROWS))
    sent = pickle.dumps(rows)
    monkeypatch.undo()
    assert ranks(pickle.loads(sent)) == list(range(ROWS // 2, ROWS))
    assert ranks(rows) == list(range(ROWS))


@pytest.mark.process
def test_workers_of_a_loader(tokens: TokenSet) -> None:
    rows = tokens.torch(shuffle=True, seed=1, buffer_rows=4)
    loader = DataLoader(rows, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        rows.set_epoch(epoch)  # which workers that live on are told
        epochs.append(ranks(loader))
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(ROWS))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # which torchdata calls
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_of_torchdata(tokens: TokenSet, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader() -> Any:
        rows = tokens.torch(shuffle=True, seed=1, buffer_rows=4)
        return stateful(rows, batch_size=2, num_workers=workers, collate_fn=ranks)

    wanted = list(loader())
    assert sorted(sum(wanted, [])) == list(range(ROWS))
    for taken in (0, 1, 3, len(wanted) - 1):
        begun = loader()
        running = iter(begun)
        for number in range(taken):
            assert next(running) == wanted[number]
        state = pickle.loads(pickle.dumps(begun.state_dict()))
        del running
        resumed = loader()
        resumed.load_state_dict(state)
        assert list(resumed) == wanted[taken:]
