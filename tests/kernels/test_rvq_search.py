"""rvq_search against the definition by distances."""

from __future__ import annotations

import pytest
import torch

from streamenc_kernels import pack_linear, rvq_search
from tests.compare import poisoned_memory
from tests.packing import either_packing, packs

pytestmark = pytest.mark.usefixtures("poisoned_memory", "either_packing")
__all__ = ["either_packing", "packs", "poisoned_memory"]


def books(levels: int, entries: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(levels * entries)
    return torch.randn(levels, entries, dim, generator=generator, dtype=dtype)


def half_norms(codebooks: torch.Tensor) -> torch.Tensor:
    return 0.5 * codebooks.square().sum(dim=-1)


def search(x: torch.Tensor, codebooks: torch.Tensor, levels: int | None = None) -> torch.Tensor:
    """With codebooks as `pack_linear` leaves them: float64 is never packed."""
    packed = [pack_linear(book) for book in codebooks]
    return rvq_search(x, codebooks, half_norms(codebooks), levels, packed)


@pytest.mark.parametrize(("dtype", "tie"), [(torch.float64, 0.0), (torch.float32, 1e-4)])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 123])
@pytest.mark.parametrize(("levels", "entries", "dim"), [(1, 5, 3), (4, 123, 5), (8, 256, 64)])
def test_is_the_nearest_entry_level_by_level(rows, levels, entries, dim, dtype, tie):
    codebooks = books(levels, entries, dim, dtype)
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=dtype)
    codes = search(x, codebooks)
    assert codes.shape == (rows, levels) and codes.dtype == torch.int64
    for row in range(rows):
        residual = x[row]
        for level in range(levels):
            distances = (residual - codebooks[level]).square().sum(dim=-1)
            assert distances[codes[row, level]] <= distances.min() + tie
            residual = residual - codebooks[level, codes[row, level]]


def test_ties_go_to_the_lowest_index():
    codebooks = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    codes = search(x, codebooks)
    assert codes[:, 0].tolist() == [0, 1, 0, 0]


def test_an_entry_is_its_own_code_and_leaves_nothing():
    codebooks = books(3, 123, 16, torch.float32)
    codebooks[1:, 7] = 0.0
    codes = search(codebooks[0], codebooks)
    assert codes[:, 0].tolist() == list(range(123))
    assert (codes[:, 1:] == 7).all()


@pytest.mark.parametrize("levels", [0, 1, 3, 4])
def test_some_levels(levels):
    codebooks = books(4, 31, 6, torch.float32)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(search(x, codebooks, levels), search(x, codebooks)[:, :levels])


@pytest.mark.parametrize("levels", [-1, 5])
def test_levels_that_there_are_not(levels):
    codebooks = books(4, 31, 6)
    with pytest.raises(ValueError, match=f"{levels} levels of 4 codebooks"):
        rvq_search(torch.zeros(9, 6), codebooks, half_norms(codebooks), levels)


def test_rows_in_half_precision_are_searched_in_the_codebooks_precision():
    codebooks = books(4, 512, 32, torch.float32)
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(search(x, codebooks), search(x.float(), codebooks))


@pytest.mark.parametrize(
    ("x", "codebooks"), [((4,), (2, 5, 4)), ((3, 4), (2, 5, 3)), ((3, 4), (5, 4))]
)
def test_shapes_that_do_not_fit(x, codebooks):
    with pytest.raises(ValueError, match="do not fit"):
        rvq_search(torch.zeros(x), torch.zeros(codebooks), torch.zeros(2, 5))
