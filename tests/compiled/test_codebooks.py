"""Searches and look-ups by instructions: the nearest entry whatever is rounded, against torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamenc.layers.quantize import ResidualVQ, decode, encode
from tests.support.compare import poisoned_memory

pytest.importorskip("numba", reason="the compiled backend needs numba")

from streamenc.compiled import codebooks
from streamenc.compiled.codebooks import MOST_ROWS, Codebooks
from streamenc.compiled.scores import scored
from streamenc.compiled.team import Team, team
from streamenc.compiled.weights import Arena

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]
PRECISIONS = ("int16", "float32")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer(books: Tensor, project_in: Tensor | None = None) -> ResidualVQ:
    channels = None if project_in is None else project_in.shape[1]
    made = ResidualVQ(*books.shape, channels_in=channels).requires_grad_(False)
    made.codebooks.copy_(books)
    if project_in is not None and made.project_in is not None:
        made.project_in.copy_(project_in)
    made.prepare()
    return made


def compiled(quantizers: Sequence[ResidualVQ], precision: str = "int16") -> Codebooks:
    made = Codebooks(quantizers, precision, Team())
    for each in quantizers:
        each.use(made)
    return made


def by_torch(quantizers: Sequence[ResidualVQ], x: Tensor, levels: Sequence[int]) -> Tensor:
    plain = [copy.deepcopy(each) for each in quantizers]
    return encode(plain, x, levels)


def assert_nearest(books: Tensor, x: Tensor, codes: Tensor) -> None:
    """Each code is the lowest of the entries nearest to what is left in float32: `x` (rows, dim),
    `codes` (rows, levels)."""
    left = x.numpy()
    for level, book in enumerate(books.numpy()):
        taken = codes[:, level].numpy()
        apart = left[:, None].astype(np.longdouble) - book.astype(np.longdouble)
        distances = np.square(apart).sum(axis=-1)
        least = distances.min(axis=1, keepdims=True)
        # No more than float64 cannot tell.
        near = distances <= least * (1 + 2.0**-44)
        assert near[np.arange(len(taken)), taken].all()
        same = (book[taken][:, None] == book).all(axis=-1)
        assert (same.argmax(axis=1) == taken).all()
        left = left - book[taken]


def near_ties(entries: int, dim: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Entries in threes: one, and two that are off by a part of it, from 1 to the last bit; vectors
    in the middle of two or three of a kind, and some that are an entry."""
    random = torch.Generator().manual_seed(seed)
    books = torch.randn(2, entries, dim, generator=random)
    near = torch.randn(2, entries, dim, generator=random)
    size = 2.0 ** -torch.randint(0, 26, (2, entries, 1), generator=random)
    place = torch.arange(entries)
    books = books[:, place // 3 * 3] + (place[:, None] % 3 > 0) * size * near
    of = torch.randint(0, max(1, entries // 3), (rows,), generator=random) * 3
    others = [torch.clamp(of + more, max=entries - 1) for more in (1, 2)]
    kinds = torch.arange(rows)[:, None] % 3
    middle = (books[0, of] + books[0, others[0]] + (kinds == 1) * books[0, others[1]]) / (
        2 + (kinds == 1)
    )
    return books, torch.where(kinds == 2, books[0, of], middle)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e16])
@pytest.mark.parametrize(("entries", "dim"), [(66, 24), (123, 5), (300, 70)])
def test_near_ties_are_told_apart(entries, dim, scale, precision):
    books, x = near_ties(entries, dim, MOST_ROWS, seed=entries)
    books, x = books * scale, x * scale
    made = quantizer(books)
    compiled([made], precision)
    codes = made.encode(x.t()[None])[0].t()
    assert_nearest(books, x, codes)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 1 << 20),
    entries=st.integers(1, 150),
    dim=st.integers(1, 70),
    rows=st.integers(1, MOST_ROWS),
    scales=st.tuples(st.integers(-60, 40), st.integers(-60, 40), st.integers(0, 30)),
    precision=st.sampled_from(PRECISIONS),
)
def test_the_nearest_entry_of_any_book(seed, entries, dim, rows, scales, precision):
    """Of books and vectors of any size, whose entries differ in size, some twice, some of zeros."""
    random = np.random.default_rng(seed)
    of_books, of_x, spread = scales
    size = 2.0 ** (of_books + random.integers(-spread, spread + 1, (2, entries, 1)) / 2)
    books = (size * random.standard_normal((2, entries, dim))).astype(np.float32)
    books[:, random.integers(0, entries, entries // 4)] = books[:, random.integers(0, entries, 1)]
    books[:, random.integers(0, entries)] = 0
    books[0, random.integers(0, entries), random.integers(0, dim)] *= 1000
    x = (2.0**of_x * random.standard_normal((rows, dim))).astype(np.float32)
    x[::3] = books[0, random.integers(0, entries, len(x[::3]))]
    x[1::5] = 0
    made = quantizer(torch.from_numpy(books))
    compiled([made], precision)
    codes = made.encode(torch.from_numpy(x).t()[None])[0].t()
    assert_nearest(torch.from_numpy(books), torch.from_numpy(x), codes)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("entries", "dim"), [(130, 64), (64, 7), (65, 256)])
def test_scores_are_off_by_no_more_than_is_told(entries, dim, precision):
    books, x = noise(1, entries, dim), 3 * noise(MOST_ROWS, dim, seed=1)
    # One that int16 does not hold well; vectors and entries of one sign, where nothing cancels.
    books[0, 3, 1] = 1000.0
    books[0, entries // 2 :].abs_()
    x[::2].abs_()
    made = quantizer(books)
    searching = compiled([made], precision)
    made.encode(x.t()[None])
    bounds = scored(books[0].numpy(), short=precision == "int16", arena=Arena())
    got = searching._scores[:MOST_ROWS, :entries].astype(np.float64)
    exact, e = x.double().numpy(), books[0].double().numpy()
    error = np.abs(got - (0.5 * np.square(e).sum(axis=1) - exact @ e.T))
    length = np.linalg.norm(exact, axis=1)[:, None]
    most = bounds.slope[:entries] * length + bounds.base[:entries]
    assert (error <= most).all()
    # It tells something: of entries that were rounded, the worst is not far from it.
    assert (error / most).max() > (0.02 if precision == "int16" else 0.005)
    if precision == "int16":
        kinds = bounds.panels.table[:, 1]
        assert kinds[0] == 0 and (kinds[1:] == 1).all()
        step = np.abs(e).max(axis=1) / 32512 / 2 * np.sqrt(dim)
        rest = slice(64, entries)
        assert (bounds.slope[rest] <= 1.01 * step[rest] + 1e-4 * np.linalg.norm(e[rest])).all()


def test_ties_go_to_the_lowest_index():
    books = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).repeat(40, 1)[None]
    made = quantizer(books)
    compiled([made])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    assert made.encode(x.t()[None])[0, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_codes_are_in_range_whatever_comes(value):
    books, x = noise(3, 70, 24), noise(5, 24, seed=1)
    x[1] = value
    made = quantizer(books)
    compiled([made])
    codes = made.encode(x.t()[None])[0].t()
    assert ((codes >= 0) & (codes < 70)).all()
    rest = [0, 2, 3, 4]
    assert_nearest(books, x[rest], codes[rest])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("levels", [(1, 0), (0, 2), (1, 1), (1, 3), (0, 0)])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (2, 1), (5, 1), (1, 17), (7, 7), (16, 4)])
def test_codes_are_those_of_torch(batch, frames, levels, precision):
    quantizers = [
        quantizer(noise(count, 300, 32, seed=count), noise(32, 48, seed=9 + count) / 7)
        for count in (1, 3)
    ]
    compiled(quantizers, precision)
    x = 3 * noise(batch, 48, frames, seed=2)
    codes = encode(quantizers, x, levels)
    expected = by_torch(quantizers, x, levels)
    assert codes.dtype == expected.dtype and codes.shape == expected.shape
    assert torch.equal(codes, expected)


def test_helpers_change_no_code(monkeypatch):
    monkeypatch.setattr(codebooks, "LEAST_SHARED", 0)
    books, x = near_ties(1500, 70, 20, seed=3)
    made = quantizer(books)
    compiled([made])
    alone = made.encode(x.t()[None])
    made.use(Codebooks([made], "int16", team(), lambda: 2))
    for _ in range(30):
        assert torch.equal(made.encode(x.t()[None]), alone)


def test_levels_and_rows_may_change_at_any_call():
    made = quantizer(noise(5, 123, 16))
    compiled([made])
    x = 2 * noise(1, 16, 80, seed=1)
    expected = copy.deepcopy(made).encode(x)
    at = 0
    for step, levels in [(1, 5), (3, 1), (40, 5), (2, 3), (1, 1), (17, 2), (1, 5)]:
        piece = x[..., at : at + step]
        assert torch.equal(made.encode(piece, levels), expected[:, :levels, at : at + step])
        at += step


def test_codes_do_not_depend_on_how_many_vectors_there_are():
    books, x = near_ties(300, 70, MOST_ROWS, seed=5)
    made = quantizer(books)
    compiled([made])
    codes = made.encode(x.t()[None])
    for count in (1, 2, 3, 13, 47, 48, 49, 63):
        assert torch.equal(made.encode(x[:count].t()[None]), codes[..., :count])
        assert torch.equal(made.encode(x[:count].t()[None], 1), codes[:, :1, :count])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_vectors_are_left_to_torch(dtype):
    made = quantizer(noise(2, 70, 8))
    compiled([made])
    x = noise(1, 8, 5, seed=1).to(dtype)
    assert torch.equal(made.encode(x), copy.deepcopy(made).encode(x))
    many = noise(1, 8, MOST_ROWS + 1, seed=1)
    assert torch.equal(made.encode(many), copy.deepcopy(made).encode(many))
    assert made.encode(noise(1, 8, 0)).shape == (1, 2, 0)


@pytest.mark.parametrize("given_levels", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (3, 1), (2, 5), (1, 64), (9, 9)])
def test_look_ups_are_those_of_torch_to_the_bit(batch, frames, given_levels):
    quantizers = [quantizer(noise(count, 50, 12, seed=count)) for count in (1, 4)]
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(50, (batch, 6, frames), generator=random)[:, :given_levels]
    plain = [copy.deepcopy(each) for each in quantizers]
    compiled(quantizers)
    assert torch.equal(decode(quantizers, codes), decode(plain, codes))
    turned = codes.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(decode(quantizers, turned), decode(plain, codes))
    assert torch.equal(quantizers[1].decode(codes[:, :4]), plain[1].decode(codes[:, :4]))


@pytest.mark.parametrize("code", [-1, 50, 1 << 40])
def test_codes_that_are_no_entries(code):
    made = quantizer(noise(2, 50, 12))
    compiled([made])
    codes = torch.zeros(1, 2, 3, dtype=torch.int64)
    codes[0, 1, 2] = code
    with pytest.raises(IndexError):
        made.decode(codes)
    assert made.decode(codes.clamp(0, 49)).isfinite().all()


def test_copies_and_changed_weights_have_none():
    made = quantizer(noise(2, 50, 12))
    used = compiled([made])
    assert made._compiled is used
    assert copy.deepcopy(made)._compiled is None
    assert pickle.loads(pickle.dumps(made))._compiled is None
    made.prepare()
    assert made._compiled is None
