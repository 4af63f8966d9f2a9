"""Finite scalar quantisation, against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from streamenc.layers.fsq import FSQ

LEVELS = (8, 8, 8, 5, 5, 5)


def by_definition(vector: list[float], levels: tuple[int, ...]) -> int:
    """Appendix A.1 of the paper, number by number."""
    code, place = 0, 1
    for z, n in zip(vector, levels, strict=True):
        half = (n - 1) * (1 + 1e-3) / 2
        offset = 0.5 if n % 2 == 0 else 0.0
        bounded = math.tanh(z + math.atanh(offset / half)) * half - offset
        code += (round(bounded) + n // 2) * place
        place *= n
    return code


@pytest.mark.parametrize("levels", [LEVELS, (2, 3, 7)])
def test_codes_are_those_of_the_definition(levels):
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(3, len(levels), 5, 7, generator=generator, dtype=torch.float64)
    codes = FSQ(levels).encode(z)
    assert codes.shape == (3, 1, 5, 7) and codes.dtype == torch.int64
    for lane in range(3):
        for row in range(5):
            for column in range(7):
                wanted = by_definition(z[lane, :, row, column].tolist(), levels)
                assert codes[lane, 0, row, column] == wanted


def test_ends_and_middle():
    fsq = FSQ(LEVELS)
    z = torch.tensor([-100.0, 0.0, 100.0]).expand(1, 6, 3)
    middle = 4 + 4 * 8 + 4 * 64 + 2 * 512 + 2 * 2560 + 2 * 12_800
    assert fsq.encode(z).flatten().tolist() == [0, middle, 63_999]
    assert fsq.decode(torch.tensor([[[0, middle, 63_999]]]))[0].T.tolist() == [
        [-1.0] * 6,
        [0.0] * 6,
        [0.75] * 3 + [1.0] * 3,
    ]


def test_all_codes_are_different_points_that_are_found_again():
    fsq = FSQ(LEVELS)
    codes = torch.arange(64_000).view(1, 1, -1)
    points = fsq.decode(codes)
    assert len(torch.unique(points[0].T, dim=0)) == fsq.entries == 64_000
    assert points.min() == -1 and points.max() == 1
    # The squashing taken back: what is rounded is then the point itself.
    column = torch.tensor(LEVELS, dtype=torch.float64).view(-1, 1)
    half = (column - 1) * 1.001 / 2
    offset = 0.5 * (column % 2 == 0)
    z = ((points * (column // 2) + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(fsq.encode(z), codes)


def test_half_precision_is_rounded_in_float32():
    z = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(FSQ(LEVELS).encode(z), FSQ(LEVELS).encode(z.float()))
