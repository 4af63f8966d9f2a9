"""Layouts of codes: what they are, their inverses, and both on a stream."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.nodes.codes.interleaving import (
    Layout,
    Layouter,
    Undelayer,
    Unflattener,
    delay,
    flatten,
    undelay,
    unflatten,
)
from tests.support.talking import pieces

SIZE = 1024
LAYOUTS = ["books", "flat", "delay", "delay:0,1,1,1", "delay:2,0,5,1"]


def codes(books: int = 4, frames: int = 23, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(books).integers(0, size, (books, frames)).astype(np.uint16)


def test_flat_is_frame_by_frame() -> None:
    tokens = flatten(np.array([[1, 2], [3, 4], [5, 6]], np.uint16), 10)
    assert tokens.tolist() == [[1, 13, 25, 2, 14, 26]] and tokens.dtype == np.uint16
    assert unflatten(tokens, 3, 10).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert flatten(codes(32, 5, 4096), 4096).dtype == np.uint32


def test_delay_is_musicgens_pattern() -> None:
    made = delay(np.array([[1, 2], [3, 4], [5, 6]], np.uint16), 10)
    assert made.tolist() == [[1, 2, 10, 10], [10, 3, 4, 10], [10, 10, 5, 6]]
    assert undelay(made, 10).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_moshis_delays() -> None:
    made = delay(np.array([[1, 2], [3, 4], [5, 6]], np.uint16), 10, [0, 1, 1])
    assert made.tolist() == [[1, 2, 10], [10, 3, 4], [10, 5, 6]]


@pytest.mark.parametrize("frames", [0, 1, 2, 23])
@pytest.mark.parametrize("books", [1, 4, 32])
def test_inverses(books: int, frames: int) -> None:
    made = codes(books, frames)
    assert np.array_equal(unflatten(flatten(made, SIZE), books, SIZE), made)
    moved = np.random.default_rng(0).permutation(books).tolist()
    for delays in (None, [0] + [1] * (books - 1), moved):
        tokens = delay(made, SIZE, delays)
        back = undelay(tokens, SIZE, delays)
        assert np.array_equal(back, made) and back.dtype == np.uint16
        assert tokens.shape[1] == (frames + max(delays or range(books)) if frames else 0)


@pytest.mark.parametrize("text", LAYOUTS)
def test_a_stream_gives_the_same(text: str) -> None:
    layout, made = Layout.of(text), codes()
    assert str(layout) == text
    whole = Layouter(layout, 4, SIZE)
    wanted = np.concatenate((whole.push(made), whole.flush()), axis=1)
    assert wanted.shape[0] == whole.rows and int(wanted.max()) < whole.entries
    for seed in (1, 2):
        layouter, out = Layouter(layout, 4, SIZE), []
        for piece in pieces(made, seed, 6):
            out.append(layouter.push(piece))
            state, layouter = layouter.state(), Layouter(layout, 4, SIZE)
            layouter.restore(state)
            assert layouter.state() == state
        out.append(layouter.flush())
        assert np.array_equal(np.concatenate(out, axis=1), wanted)
        assert layouter.state() == Layouter(layout, 4, SIZE).state()


def test_inverses_on_a_stream() -> None:
    made = codes()
    flat, late = flatten(made, SIZE), delay(made, SIZE, [2, 0, 5, 1])
    for seed in (3, 4):
        back = Unflattener(4, SIZE)
        out = [back.push(piece) for piece in pieces(flat, seed, 9)]
        assert np.array_equal(np.concatenate(out, axis=1), made) and back.flush() == 0
        undo = Undelayer((2, 0, 5, 1), SIZE)
        out = [undo.push(piece) for piece in pieces(late, seed, 6)]
        assert np.array_equal(np.concatenate(out, axis=1), made) and undo.flush() == 0


def test_delayed_tokens_from_the_middle_and_cut_short() -> None:
    made = codes()
    late = delay(made, SIZE)
    undo = Undelayer((0, 1, 2, 3), SIZE, from_start=False)
    assert np.array_equal(undo.push(late[:, 2:]), made[:, 2:]) and undo.flush() == 0
    undo = Undelayer((0, 1, 2, 3), SIZE)
    assert np.array_equal(undo.push(late[:, :10]), made[:, :7]) and undo.flush() == 3
    with pytest.raises(InputError, match="last 3 frames"):
        undelay(late[:, :23], SIZE)
    back = Unflattener(4, SIZE)
    assert back.push(flatten(made, SIZE)[:, :10]).shape == (4, 2) and back.flush() == 2


def test_other_delays_are_noticed() -> None:
    late = delay(codes(), SIZE, [0, 1, 1, 1])
    for wrong in ([0, 1, 2, 3], [0, 0, 1, 1]):
        with pytest.raises(InputError, match="say delay:0,1,1,1"):
            undelay(late, SIZE, wrong)
    with pytest.raises(InputError, match="a pad, 1024"):
        Undelayer((0, 0, 1, 1), SIZE, from_start=False).push(late)


def test_what_is_no_token_of_its_place() -> None:
    tokens = flatten(codes(), SIZE)
    tokens[0, 5] += SIZE
    with pytest.raises(InputError, match="of codebook 2, where one of codebook 1 is due"):
        unflatten(tokens, 4, SIZE)
    with pytest.raises(InputError, match="multiple of 4"):
        unflatten(tokens[:, :7], 4, SIZE)


@pytest.mark.parametrize("text", ["rows", "flat:1", "delay:", "delay:1,x", "delay:1,1", "delay:-1"])
def test_layouts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        Layout.of(text)


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="for 3 codebooks"):
        Layouter(Layout.of("delay:0,1"), 3, SIZE)
    for layout in ("flat", "delay"):
        layouter = Layouter(Layout(layout), 4, SIZE)
        with pytest.raises(InputError, match=r"\(4, frames\)"):
            layouter.push(codes(3))
        with pytest.raises(InputError, match="wanted 0 to 1023"):
            layouter.push(codes() + np.uint16(SIZE))
        with pytest.raises(InputError, match="float64"):
            layouter.push(codes().astype(float))


def test_states_that_are_none() -> None:
    layouter = Layouter(Layout("delay"), 4, SIZE)
    layouter.push(codes())
    state = layouter.state()
    for other in (Layouter(Layout("flat"), 4, SIZE), Layouter(Layout("delay"), 5, SIZE)):
        with pytest.raises(SnapshotError):
            other.restore(state)
    with pytest.raises(SnapshotError, match="bytes"):
        Layouter(Layout("delay"), 4, 100).restore(state)
    for end in range(len(state)):
        with pytest.raises(SnapshotError):
            layouter.restore(state[:end])
    assert layouter.state() == state
