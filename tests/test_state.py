"""State trees: lanes, commits, and snapshots that are whole or refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from streamenc import state as states
from streamenc.errors import SnapshotError
from streamenc.state import State
from tests.support.profile import examples

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8]


def numbered(*shape: int, dtype: torch.dtype = torch.float32, start: int = 1) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return torch.arange(start, start + count).reshape(shape).to(dtype)


def tree(lanes: int = 3) -> State:
    return (
        numbered(lanes, 4, 2),
        None,
        (numbered(lanes, dtype=torch.int64), (), (None, numbered(lanes, 3, start=50))),
    )


def same(a: State, b: State) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is None and b is None


@st.composite
def trees(draw: st.DrawFn) -> State:
    lanes = draw(st.integers(1, 4))

    def leaf(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (lanes, *shape), generator=generator).to(dtype)

    leaf_strategy = st.builds(
        leaf,
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(DTYPES),
        st.integers(0, 1 << 30),
    )
    node = st.recursive(
        st.none() | leaf_strategy,
        lambda children: st.lists(children, max_size=4).map(tuple),
        max_leaves=8,
    )
    drawn: State = draw(node)
    return drawn


def test_leaves_come_in_order_and_none_is_skipped() -> None:
    shapes = [tuple(leaf.shape) for leaf in states.leaves(tree())]
    assert shapes == [(3, 4, 2), (3,), (3, 3)]
    assert list(states.leaves(None)) == []


def test_map_state_keeps_the_form() -> None:
    doubled = states.map_state(lambda leaf: leaf * 2, tree())
    assert isinstance(doubled, tuple) and doubled[1] is None
    for new, old in zip(states.leaves(doubled), states.leaves(tree()), strict=True):
        assert torch.equal(new, old * 2)


def test_clone_is_independent() -> None:
    original = tree()
    copy = states.clone(original)
    for leaf in states.leaves(copy):
        leaf.zero_()
    assert same(original, tree())


def test_nbytes() -> None:
    assert states.nbytes(tree()) == 3 * 4 * 2 * 4 + 3 * 8 + 3 * 3 * 4
    assert states.nbytes(None) == 0


def test_allocate_gives_zeros_of_the_same_kind() -> None:
    pool = states.allocate(states.lane(tree(), 1), 5)
    for leaf, like in zip(states.leaves(pool), states.leaves(tree()), strict=True):
        assert leaf.shape == (5, *like.shape[1:]) and leaf.dtype == like.dtype
        assert not leaf.any()


def test_lane_is_a_copy_and_put_lane_its_inverse() -> None:
    pool = tree()
    one = states.lane(pool, 1)
    states.put_lane(pool, 2, one)
    for leaf, before in zip(states.leaves(pool), states.leaves(tree()), strict=True):
        assert torch.equal(leaf[:2], before[:2])
        assert torch.equal(leaf[2], before[1])
    for leaf in states.leaves(one):
        leaf.zero_()
    assert same(states.lane(pool, 1), states.lane(tree(), 1))


@given(mask=st.lists(st.booleans(), min_size=3, max_size=3))
def test_commit_moves_active_lanes_only(mask: list[bool]) -> None:
    pool = tree()
    new = states.map_state(lambda leaf: leaf + 100, tree())
    states.commit(pool, new, torch.tensor(mask))
    for leaf, old, value in zip(
        states.leaves(pool), states.leaves(tree()), states.leaves(new), strict=True
    ):
        for lane, active in enumerate(mask):
            assert torch.equal(leaf[lane], (value if active else old)[lane])


def test_commit_keeps_idle_lanes_to_the_bit_whatever_the_new_ones_hold() -> None:
    pool: State = (torch.tensor([-0.0, float("nan")]),)
    before = states.clone(pool)
    states.commit(pool, (torch.tensor([float("inf"), float("nan")]),), torch.tensor([False, False]))
    for leaf, old in zip(states.leaves(pool), states.leaves(before), strict=True):
        assert torch.equal(leaf.view(torch.int32), old.view(torch.int32))


def test_commit_leaves_what_was_written_in_place() -> None:
    ring, position = torch.zeros(2, 4), torch.tensor([0, 0])
    ring[:, 0] = 7  # as a step does it, ahead of the position
    states.commit((ring, position), (ring, position + 1), torch.tensor([True, False]))
    assert torch.equal(ring[:, 0], torch.tensor([7.0, 7.0]))
    assert position.tolist() == [1, 0]


def test_commit_refuses_another_tree() -> None:
    with pytest.raises(ValueError):
        states.commit((torch.zeros(1),), (), torch.tensor([True]))


def test_commit_moves_views_of_a_pool() -> None:
    pool = tree()
    before = states.map_state(lambda leaf: leaf[:2], pool)
    new = states.map_state(lambda leaf: leaf + 1, before)
    states.commit(before, new, torch.tensor([False, True]))
    for leaf, old in zip(states.leaves(pool), states.leaves(tree()), strict=True):
        assert torch.equal(leaf[0], old[0]) and torch.equal(leaf[2], old[2])
        assert torch.equal(leaf[1], old[1] + 1)


HEADER = {"model": "abc", "pushed": 123456789012, "names": ["ü", None]}


@settings(deadline=None)
@given(state=trees())
def test_snapshot_round_trip(state: State) -> None:
    restored, header = states.from_bytes(states.to_bytes(state, HEADER))
    assert same(restored, state)
    assert header == HEADER


def test_snapshot_of_views_that_share_memory() -> None:
    both = numbered(2, 2, 6)
    state: State = (both[:, 0], both[:, 1, ::2], both[:1])
    restored, _ = states.from_bytes(states.to_bytes(state, {}))
    assert same(restored, state)


def test_restored_tensors_can_be_written() -> None:
    restored, _ = states.from_bytes(states.to_bytes(tree(), {}))
    for leaf in states.leaves(restored):
        leaf.zero_()


@settings(deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused(data: st.DataObject) -> None:
    blob = states.to_bytes(tree(), HEADER)
    length = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(SnapshotError):
        states.from_bytes(blob[:length])


@settings(deadline=None, max_examples=examples(300, fast=60))
@given(data=st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    blob = bytearray(states.to_bytes(tree(), HEADER))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        restored, header = states.from_bytes(bytes(blob))
    except SnapshotError:
        return
    # Some bits mean nothing: the padding, and a space between two JSON tokens.
    assert same(restored, tree()) and header == HEADER


@settings(deadline=None)
@given(blob=st.binary(max_size=200))
def test_any_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(SnapshotError):
        states.from_bytes(blob)


def test_appended_bytes_are_refused() -> None:
    with pytest.raises(SnapshotError):
        states.from_bytes(states.to_bytes(tree(), HEADER) + b"\0")


def test_foreign_safetensors_are_refused() -> None:
    with pytest.raises(SnapshotError, match="no snapshot"):
        states.from_bytes(save_safetensors({"0": torch.zeros(2)}))
    with pytest.raises(SnapshotError, match="no snapshot"):
        states.from_bytes(save_safetensors({"0": torch.zeros(2)}, {"format": "pt"}))


def test_a_pickle_is_never_opened() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle was opened",)

    with pytest.raises(SnapshotError):
        states.from_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize("version", ["1", "3"])
def test_another_version_is_refused_by_name(version: str) -> None:
    blob = _rewritten(states.to_bytes(tree(), HEADER), streamenc_snapshot=version)
    with pytest.raises(SnapshotError, match=f"version '{version}'.*same release"):
        states.from_bytes(blob)


@pytest.mark.parametrize(
    "metadata",
    [
        {"tree": "[1, 1"},
        {"tree": "[1, 1, 1, 1]"},
        {"tree": "[1]"},
        {"tree": '{"a": 1}'},
        {"tree": "[" * 100_000},
        {"header": "[]"},
        {"header": "{"},
        {"header": json.dumps({**HEADER, "pushed": 123456789013})},
    ],
)
def test_forged_metadata_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(SnapshotError):
        states.from_bytes(_rewritten(states.to_bytes(tree(), HEADER), **metadata))


def test_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = states.to_bytes(tree(), HEADER)
    monkeypatch.setattr(states, "MAX_SNAPSHOT_BYTES", len(blob) - 1)
    with pytest.raises(SnapshotError, match="more than a snapshot"):
        states.from_bytes(blob)


def _rewritten(blob: bytes, **metadata: str) -> bytes:
    length = int.from_bytes(blob[:8], "little")
    old = json.loads(blob[8 : 8 + length])["__metadata__"]
    return bytes(save_safetensors(load_safetensors(blob), old | metadata))
