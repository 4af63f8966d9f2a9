"""rvq_search against the definition by distances, as torch operators and as the Triton kernel."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from streamenc_kernels import Quantiser, cannot_search, pack_linear, rvq_search
from tests.support.compare import poisoned_memory
from tests.support.interpreter import interpreted, needs_triton
from tests.support.packing import either_packing, packs

__all__ = ["either_packing", "interpreted", "packs", "poisoned_memory"]
FLOAT = torch.float32
# What a tile of more entries computes is the same, and it is interpreted faster.
WIDE = 256


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


def by_kernel(
    quantisers: Sequence[Quantiser], parts: int | None, wide: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """In the interpreter's process: `parts` and wide tiles are the kernel's own affair."""
    from streamenc_kernels.rvq_search import triton as module

    assert cannot_search(quantisers) == ""
    if parts is None:
        return rvq_search(quantisers, sums=True, implementation="triton")
    narrow = dict(module.TILE)
    module.TILE["ENTRIES"] = WIDE if wide else narrow["ENTRIES"]
    try:
        return module.search(quantisers, parts)
    finally:
        module.TILE.update(narrow)


@needs_triton
class TestTriton:
    @pytest.mark.parametrize(
        ("rows", "levels", "entries", "dim", "parts", "wide"),
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
            (1, (1, 1), 1024, 64, 64, False),
            (5, (1, 7), 1024, 128, 4, True),
            pytest.param(123, (8,), 1024, 64, 1, True, marks=pytest.mark.slow),
            pytest.param(17, (1, 2), 2048, 256, 8, True, marks=pytest.mark.slow),
            (1, (2,), 2048, 512, 5, True),
        ],
    )
    def test_is_the_nearest_entry_level_by_level(
        self, interpreted, rows, levels, entries, dim, parts, wide
    ):
        quantisers = [make(rows, n or 1, entries, dim, seed=n, searched=n) for n in levels]
        codes, sums = interpreted(by_kernel, quantisers, parts, wide)
        assert_nearest(codes, quantisers, 1e-3)
        assert_sums(sums, codes, quantisers)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_ties_go_to_the_lowest_index(self, interpreted, parts):
        assert interpreted(by_kernel, [TIED], parts)[0][:, 0].tolist() == [0, 1, 0, 0]
        # The same entries again, so that ties lie in other lanes, tiles and parts.
        again = TIED._replace(codebooks=TIES.repeat(1, 30, 1), half_norms=torch.full((1, 120), 0.5))
        assert interpreted(by_kernel, [again], parts)[0][:, 0].tolist() == [0, 1, 0, 0]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rows_in_half_precision_are_searched_in_float32(self, interpreted, dtype):
        quantisers = [make(5, 3, 64, 24), make(5, 2, 64, 24, seed=1)]
        less = [quantiser._replace(x=quantiser.x.to(dtype)) for quantiser in quantisers]
        same = [quantiser._replace(x=quantiser.x.to(dtype).float()) for quantiser in quantisers]
        ours, theirs = (interpreted(by_kernel, rows, 2) for rows in (less, same))
        assert torch.equal(ours[0], theirs[0])
        assert_nearest(ours[0], same, 1e-3)

    @pytest.mark.parametrize("parts", [1, 3])
    def test_rows_alone_are_as_in_a_batch(self, interpreted, parts):
        quantiser = make(17, 3, 64, 24)
        codes, _ = interpreted(by_kernel, [quantiser], parts)
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
        assert torch.equal(codes[[0, 2]], rvq_search([quantiser])[0][[0, 2]])

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
