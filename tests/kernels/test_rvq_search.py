"""rvq_search against the definition by distances, as torch operators and as the Triton kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import streamenc
from streamenc_kernels import Quantiser, cannot_search, pack_linear, rvq_search
from tests.support.compare import poisoned_memory
from tests.support.interpreter import needs_triton
from tests.support.packing import either_packing, packs

__all__ = ["either_packing", "packs", "poisoned_memory"]
FLOAT = torch.float32


def make(
    rows: int,
    levels: int,
    entries: int,
    dim: int,
    dtype: torch.dtype = FLOAT,
    seed: int = 0,
    searched: int | None = None,
) -> Quantiser:
    """As `pack_linear` leaves the codebooks: float64 is never packed."""
    generator = torch.Generator().manual_seed(seed)
    codebooks = torch.randn(levels, entries, dim, generator=generator, dtype=dtype)
    x = 2 * torch.randn(rows, dim, generator=generator, dtype=dtype)
    packed = [pack_linear(book) for book in codebooks]
    return Quantiser(x, codebooks, 0.5 * codebooks.square().sum(dim=-1), searched, packed)


def assert_nearest(codes: Tensor, quantisers: Sequence[Quantiser], tie: float) -> None:
    """Each code is that of the nearest entry to what the codes before it have left, or as near."""
    assert codes.dtype == torch.int64
    assert codes.shape == (
        quantisers[0].x.shape[0],
        sum(quantiser.depth for quantiser in quantisers),
    )
    start = 0
    for quantiser in quantisers:
        residual, books = quantiser.x.double(), quantiser.codebooks.double()
        for level in range(quantiser.depth):
            taken = codes[:, start + level]
            distances = (residual[:, None] - books[level]).square().sum(dim=-1)
            nearest = distances.gather(1, taken[:, None])[:, 0]
            assert (nearest <= distances.amin(dim=1) + tie).all()
            residual = residual - books[level, taken]
        start += quantiser.depth


def assert_sums(sums: Sequence[Tensor], codes: Tensor, quantisers: Sequence[Quantiser]) -> None:
    """The entries, added up in the order of their levels, to the bit."""
    start = 0
    for total, quantiser in zip(sums, quantisers, strict=True):
        expected = torch.zeros_like(quantiser.x, dtype=quantiser.codebooks.dtype)
        for level in range(quantiser.depth):
            expected = expected + quantiser.codebooks[level, codes[:, start + level]]
        assert torch.equal(total, expected)
        start += quantiser.depth


@pytest.mark.usefixtures("poisoned_memory", "either_packing")
class TestTorch:
    @pytest.mark.parametrize(("dtype", "tie"), [(torch.float64, 1e-9), (FLOAT, 1e-4)])
    @pytest.mark.parametrize("rows", [0, 1, 2, 5, 123])
    @pytest.mark.parametrize(("levels", "entries", "dim"), [(1, 5, 3), (4, 123, 5), (8, 256, 64)])
    def test_is_the_nearest_entry_level_by_level(self, rows, levels, entries, dim, dtype, tie):
        quantiser = make(rows, levels, entries, dim, dtype)
        codes, sums = rvq_search([quantiser])
        assert_nearest(codes, [quantiser], tie)
        assert sums == []

    def test_two_halves_are_searched_each_alone(self):
        quantisers = [make(9, 1, 31, 6), make(9, 4, 31, 6, seed=1, searched=3)]
        codes, sums = rvq_search(quantisers, sums=True)
        alone = [rvq_search([quantiser], sums=True) for quantiser in quantisers]
        assert torch.equal(codes, torch.cat([codes for codes, _ in alone], dim=1))
        assert_sums(sums, codes, quantisers)
        assert all(torch.equal(ours, s) for ours, (_, [s]) in zip(sums, alone, strict=True))

    @pytest.mark.parametrize("levels", [0, 1, 3, 4])
    def test_some_levels(self, levels):
        quantiser = make(9, 4, 31, 6)
        codes, sums = rvq_search([quantiser._replace(levels=levels)], sums=True)
        assert torch.equal(codes, rvq_search([quantiser])[0][:, :levels])
        assert_sums(sums, codes, [quantiser._replace(levels=levels)])

    def test_an_entry_is_its_own_code_and_leaves_nothing(self):
        quantiser = make(123, 3, 123, 16)
        quantiser.codebooks[1:, 7] = 0.0
        quantiser = quantiser._replace(
            x=quantiser.codebooks[0],
            half_norms=0.5 * quantiser.codebooks.square().sum(-1),
            packed=None,
        )
        codes, _ = rvq_search([quantiser])
        assert codes[:, 0].tolist() == list(range(123))
        assert (codes[:, 1:] == 7).all()

    def test_rows_in_half_precision_are_searched_in_the_codebooks_precision(self):
        quantiser = make(50, 4, 512, 32)
        less = quantiser._replace(x=quantiser.x.bfloat16())
        same = quantiser._replace(x=quantiser.x.bfloat16().float())
        assert torch.equal(rvq_search([less])[0], rvq_search([same])[0])


TIES = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
TIED = Quantiser(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]]), TIES, torch.full((1, 4), 0.5)
)


def test_ties_go_to_the_lowest_index():
    assert rvq_search([TIED])[0][:, 0].tolist() == [0, 1, 0, 0]


def exact_codes(quantisers: Sequence[Quantiser]) -> Tensor:
    """Of the nearest entries in float64 to what is left in float32, ties to the lowest index."""
    codes = []
    for quantiser in quantisers:
        left = quantiser.x.float()
        for level in range(quantiser.depth):
            book = quantiser.codebooks[level]
            distance = quantiser.half_norms[level].double() - left.double() @ book.double().T
            codes.append(distance.argmin(dim=1))
            left = left - book[codes[-1]]
    return torch.stack(codes, dim=1) if codes else torch.empty(len(left), 0, dtype=torch.int64)


def by_kernel(
    quantisers: Sequence[Quantiser], parts: int | None = None, many: bool = False, worst: float = 0
) -> tuple[Tensor, list[Tensor]]:
    """In the interpreter's process: `parts` and the tile for many rows are the kernel's own affair.

    worst  Products are off by so much of the sum of their magnitudes, up or down by turns.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from streamenc_kernels.rvq_search import triton as module

    assert cannot_search(quantisers) == ""
    if parts is None:
        return rvq_search(quantisers, sums=True, implementation="triton")
    dot = InterpreterBuilder.create_dot

    def off(builder, a, b, total, *how):
        right = dot(builder, a, b, total, *how)
        up = 1 - 2 * (sum(np.indices(right.data.shape)) % 2)
        error = (worst * up * (abs(a.data) @ abs(b.data))).astype(right.data.dtype)
        return TensorHandle(right.data + error, right.dtype)

    InterpreterBuilder.create_dot = off if worst else dot
    try:
        return module.search(
            quantisers, sums=True, tile=module.MANY if many else module.FEW, parts=parts
        )
    finally:
        InterpreterBuilder.create_dot = dot


def near_ties(rows: int, entries: int, dim: int, seed: int, scale: float = 1.0) -> Quantiser:
    """Entries in threes: one, and two that are off by a part of it, from 1 to the last bit. Vectors
    lie between two or three of a kind, so that these are about equally near."""
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn(2, entries, dim, generator=generator)
    near = torch.randn(2, entries, dim, generator=generator)
    size = 2.0 ** -torch.randint(0, 24, (2, entries, 1), generator=generator)
    first = torch.arange(entries) // 3 * 3
    books = books[:, first] + (torch.arange(entries)[:, None] % 3 > 0) * size * near
    of = torch.randint(0, entries // 3, (rows,), generator=generator) * 3
    others = torch.where(torch.arange(rows) % 2 == 0, 2, 3)[:, None]
    middle = books[0, of] + books[0, of + 1] + (others == 3) * books[0, of + 2]
    books = books * scale
    return Quantiser(scale * middle / others, books, 0.5 * books.square().sum(dim=-1))


@needs_triton
class TestTriton:
    @pytest.mark.parametrize(
        ("rows", "levels", "entries", "dim", "parts", "many"),
        [
            (1, (1, 3), 37, 24, None, False),
            (1, (1, 2), 37, 8, 3, False),
            (5, (2,), 37, 24, 2, False),
            (17, (3, 1), 123, 8, 1, False),
            (17, (1, 2), 123, 24, 5, False),
            (1, (0, 2), 37, 7, 2, False),
            (3, (2, 0), 16, 40, 1, False),
            (0, (1, 2), 37, 8, 1, False),
            (3, (0, 0), 37, 8, 1, False),
            pytest.param(1, (1, 1), 1024, 64, 32, False, marks=pytest.mark.slow),
            (70, (1, 4), 300, 40, 2, True),
            (5, (1, 2), 128, 128, 1, True),
            pytest.param(123, (8,), 1024, 64, 1, True, marks=pytest.mark.slow),
            pytest.param(17, (1, 2), 2048, 256, 8, True, marks=pytest.mark.slow),
            (1, (2,), 300, 512, 5, False),
        ],
    )
    def test_is_the_nearest_entry_level_by_level(
        self, interpreted, rows, levels, entries, dim, parts, many
    ):
        quantisers = [make(rows, n or 1, entries, dim, seed=n, searched=n) for n in levels]
        codes, sums = interpreted(by_kernel, quantisers, parts, many)
        assert torch.equal(codes, exact_codes(quantisers))
        assert_sums(sums, codes, quantisers)

    @pytest.mark.parametrize(
        ("many", "scale", "worst"),
        [
            pytest.param(False, 1.0, 0.0, marks=pytest.mark.slow),
            (False, 1.0, 0.99 * 2**-16),
            pytest.param(False, 1e-6, 0.99 * 2**-16, marks=pytest.mark.slow),
            (True, 1e12, 0.99 * 2**-16),
        ],
    )
    def test_near_ties_are_told_apart_whatever_the_products_are_off_by(
        self, interpreted, scale, worst, many
    ):
        quantiser = near_ties(16, 66, 24, seed=int(many), scale=scale)
        codes, _ = interpreted(by_kernel, [quantiser], 2, many, worst)
        assert torch.equal(codes, exact_codes([quantiser]))

    @pytest.mark.parametrize("worst", [pytest.param(0.0, marks=pytest.mark.slow), 0.99 * 2**-16])
    def test_trained_codebooks(self, interpreted, worst):
        quantizer = streamenc.load("nano").encoder.quantizer
        books, norms = quantizer.codebooks[:3], quantizer.half_norms[:3]
        generator = torch.Generator().manual_seed(0)
        pick = torch.randint(0, books.shape[1], (3, 16), generator=generator)
        x = sum(book[entry] for book, entry in zip(books, pick, strict=True))
        # In the middle of two entries, of one entry, of none.
        x[1::4] = (books[0, pick[0, 1::4]] + books[0, pick[1, 1::4]]) / 2
        x[2::4] = books[0, pick[0, 2::4]]
        x[3::4] = 0
        quantiser = Quantiser(x, books.clone(), norms.clone())
        codes, _ = interpreted(by_kernel, [quantiser], 4, False, worst)
        assert torch.equal(codes, exact_codes([quantiser]))

    @pytest.mark.parametrize("many", [False, True])
    def test_norms_of_all_sizes(self, interpreted, many):
        quantiser = make(12, 2, 70, 24)
        size = 2.0 ** torch.arange(-35, 35)
        books = quantiser.codebooks * torch.stack((size, size.flip(0)))[..., None]
        x = quantiser.x * 2.0 ** torch.arange(-18, 18, 3)[:, None]
        x[5] = books[0, 20]
        books[:, 33] = 0
        quantiser = Quantiser(x, books, 0.5 * books.square().sum(dim=-1))
        codes, _ = interpreted(by_kernel, [quantiser], 2, many, 0.99 * 2**-16)
        assert torch.equal(codes, exact_codes([quantiser]))

    def test_distances_that_overflow(self, interpreted):
        quantiser = make(5, 2, 40, 8)
        quantiser.codebooks[0, ::2] *= 1e19
        quantiser.x[::2] *= 1e22
        books = quantiser.codebooks
        quantiser = Quantiser(quantiser.x, books, 0.5 * books.square().sum(dim=-1))
        assert quantiser.half_norms.isinf().any()
        codes, _ = interpreted(by_kernel, [quantiser], 2)
        assert torch.equal(codes, exact_codes([quantiser]))

    @pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_ties_go_to_the_lowest_index(self, interpreted, parts):
        assert interpreted(by_kernel, [TIED], parts)[0][:, 0].tolist() == [0, 1, 0, 0]
        # The same entries again, so that ties lie in other lanes, tiles and parts.
        again = TIED._replace(codebooks=TIES.repeat(1, 30, 1), half_norms=torch.full((1, 120), 0.5))
        assert interpreted(by_kernel, [again], parts)[0][:, 0].tolist() == [0, 1, 0, 0]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rows_in_half_precision_are_searched_in_float32(self, interpreted, dtype):
        quantisers = [make(5, 3, 64, 24), make(5, 2, 64, 24, seed=1)]
        less = [quantiser._replace(x=quantiser.x.to(dtype)) for quantiser in quantisers]
        codes, _ = interpreted(by_kernel, less, 2)
        assert torch.equal(codes, exact_codes(less))

    @pytest.mark.parametrize("parts", [1, 3])
    def test_rows_alone_are_as_in_a_batch(self, interpreted, parts):
        quantiser = make(17, 3, 64, 24)
        codes, _ = interpreted(by_kernel, [quantiser], parts, True)
        for row in (0, 9, 16):
            one = quantiser._replace(x=quantiser.x[row : row + 1].clone())
            assert torch.equal(interpreted(by_kernel, [one], 1)[0][0], codes[row])

    @pytest.mark.parametrize("parts", [1, 3])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_codes_are_in_range_whatever_comes(self, interpreted, value, parts):
        quantiser = make(3, 2, 37, 24)
        quantiser.codebooks.abs_()
        quantiser.x[1] = value
        codes, _ = interpreted(by_kernel, [quantiser], parts)
        assert ((codes >= 0) & (codes < 37)).all()
        assert torch.equal(codes, exact_codes([quantiser]))

    def test_what_it_cannot_take(self, interpreted):
        quantiser = make(5, 1, 16, 8)
        wrong = {
            "3 quantisers": [quantiser] * 3,
            "the vectors are torch.float64": [quantiser._replace(x=quantiser.x.double())],
            "torch.float32 and torch.float16": [
                quantiser,
                quantiser._replace(x=quantiser.x.half()),
            ],
            "differ in entries or dim": [quantiser, make(5, 1, 17, 8)],
            "codebooks are torch.float64": [
                quantiser._replace(codebooks=quantiser.codebooks.double())
            ],
            "not contiguous": [quantiser._replace(codebooks=quantiser.codebooks.expand(2, 16, 8))],
        }
        for reason, quantisers in wrong.items():
            assert reason in interpreted(cannot_search, quantisers)
        assert "16 bytes" in interpreted(_misaligned)


def _misaligned() -> str:
    quantiser = make(5, 1, 16, 8)
    return cannot_search([quantiser._replace(x=torch.zeros(41)[1:].view(5, 8))])


def rounded(x: Tensor, to_nearest: bool) -> Tensor:
    """float32 with the 10 bits behind the leading one that a tensor core takes of it."""
    bits = x.view(torch.int32) + (1 << 12 if to_nearest else 0)
    return (bits & ~((1 << 13) - 1)).view(torch.float32)


def truncated(x: Tensor, like: Tensor) -> Tensor:
    """Without what lies below the 24 bits of a float32 as large as `like`."""
    unit = torch.exp2(torch.frexp(like).exponent.double() - 24)
    return (x / unit).trunc() * unit


def emulated(left: Tensor, right: Tensor, depth: int, step: int, to_nearest: bool) -> Tensor:
    """Products (n, dim) x (n, dim) -> (n,) in three products of TF32, as the kernel takes them.

    A tensor core adds `step` exact products to what there is, each cut to the last place of the
    largest of all; the sums of `depth` dimensions are added up in float32.
    """
    parts = []
    for x in (left, right):
        high = rounded(x, to_nearest)
        parts.append((high.double(), rounded(x - high, to_nearest).double()))
    (left_high, left_low), (right_high, right_low) = parts
    total = torch.zeros(len(left))
    for begin in range(0, left.shape[1], depth):
        some = torch.zeros(len(left), dtype=torch.float64)
        for a, b in ((left_low, right_high), (left_high, right_low), (left_high, right_high)):
            for first in range(begin, begin + depth, step):
                terms = torch.cat(((a * b)[:, first : first + step], some[:, None]), dim=1)
                some = truncated(terms, terms.abs().amax(dim=1, keepdim=True)).sum(dim=1)
                some = truncated(some, some)
        total = total + some.float()
    return total


@pytest.mark.parametrize("to_nearest", [True, False])
@pytest.mark.parametrize(("depth", "step"), [(32, 4), pytest.param(32, 8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dim", [64, 256, pytest.param(512, marks=pytest.mark.slow)])
def test_products_are_off_by_no_more_than_the_margin(dim, depth, step, to_nearest):
    generator = torch.Generator().manual_seed(dim)
    left, right = torch.randn(2, 4_000, dim, generator=generator)
    # All of one sign, so that nothing cancels and all is cut the same way; of all sizes; and with
    # all the bits set that are cut off.
    left[1_000:], right[1_000:] = left[1_000:].abs(), right[1_000:].abs()
    left[2_000:3_000] *= 2.0 ** torch.randint(-20, 20, (1_000, dim), generator=generator)
    right[2_000:3_000] = left[2_000:3_000].flip(0)
    left[3_000:] = 2 - 2.0**-23
    steps = torch.arange(1_000, dtype=torch.int32)
    right[3_000:] = (left[3_000:].view(torch.int32) - steps[:, None]).view(FLOAT)
    error = (emulated(left, right, depth, step, to_nearest) - (left.double() * right).sum(1)).abs()
    lengths = left.double().norm(dim=1) * right.double().norm(dim=1)
    worst = float((error / lengths).max())
    # Else it would be tested with nothing in it.
    assert 2**-24 < worst <= 2**-16 + dim * 2**-28


@pytest.mark.parametrize("levels", [-1, 5])
def test_levels_that_there_are_not(levels):
    with pytest.raises(ValueError, match=f"{levels} levels of 4 codebooks"):
        rvq_search([make(9, 4, 31, 6, searched=levels)])


@pytest.mark.parametrize(
    ("x", "codebooks", "half_norms"),
    [
        ((4,), (2, 5, 4), (2, 5)),
        ((3, 4), (2, 5, 3), (2, 5)),
        ((3, 4), (5, 4), (5,)),
        ((3, 4), (2, 5, 4), (2, 4)),
    ],
)
def test_shapes_that_do_not_fit(x, codebooks, half_norms):
    quantiser = Quantiser(torch.zeros(x), torch.zeros(codebooks), torch.zeros(half_norms))
    with pytest.raises(ValueError, match="do not fit"):
        rvq_search([quantiser])


def test_halves_that_do_not_fit():
    with pytest.raises(ValueError, match="4 and 5 rows"):
        rvq_search([make(4, 1, 5, 6), make(5, 1, 5, 6)])
    with pytest.raises(ValueError, match="one quantiser or more"):
        rvq_search([])
