"""write_rows against torch's own indexing, as torch and as Triton kernel: the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamenc_kernels import write_rows
from streamenc_kernels.dispatch import Implementation
from streamenc_kernels.lane_rows import cannot_write
from tests.support.interpreter import needs_triton

# Of a lane: the leaf, and how many numbers more a row of the matrix has whose last ones it is.
LEAVES = [
    ((), 0, torch.int64),
    ((3,), 0, torch.float32),
    ((64, 6), 5, torch.float32),
    ((5, 123), 0, torch.float32),
    ((7, 1), 4, torch.bfloat16),
    ((2, 3, 4), 0, torch.float64),
    ((2, 3, 4), 3, torch.float32),
    ((2,), 0, torch.bool),
    ((3, 0), 2, torch.float32),
    ((1500,), 0, torch.float32),
]


def leaves(lanes: int, seed: int, spare: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape, more, dtype in LEAVES:
        wide = (*shape[:-1], shape[-1] + more * spare) if shape else shape
        leaf = torch.randn(lanes, *wide, generator=generator).mul(10).to(dtype)
        made.append(leaf[..., leaf.shape[-1] - shape[-1] :] if shape else leaf)
    return made


def written(
    implementation: Implementation,
    lanes: int,
    active: Tensor | None,
    index: Tensor | None,
    rows: int,
) -> list[Tensor]:
    # Pools also as parts of one memory, as lanes by index have them.
    pools = leaves(lanes, 0, spare=False)
    joined = torch.cat([pools[2].flatten(1), pools[3].flatten(1)], dim=1)
    pools[2] = joined[:, : 64 * 6].view(lanes, 64, 6)
    pools[3] = joined[:, 64 * 6 :].view(lanes, 5, 123)
    values = leaves(rows, 1, spare=True)
    write_rows(pools, values, active=active, lanes=index, implementation=implementation)
    return pools


@needs_triton
@pytest.mark.parametrize("active", [None, [1, 0, 1, 1, 0], [0] * 5])
@pytest.mark.parametrize("lanes", [None, [7, 2, 0, 5, 3]])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_rows_go_to_their_lanes_and_the_others_stay(interpreted, implementation, lanes, active):
    mask = None if active is None else torch.tensor(active, dtype=torch.bool)
    index = None if lanes is None else torch.tensor(lanes)
    held = 5 if lanes is None else 9
    pools = interpreted(written, implementation, held, mask, index, 5)
    wanted, values = leaves(held, 0, spare=False), leaves(5, 1, spare=True)
    for pool, value in zip(wanted, values, strict=True):
        for row in range(5):
            if active is None or active[row]:
                pool[row if lanes is None else lanes[row]] = value[row]
    for ours, theirs in zip(pools, wanted, strict=True):
        assert torch.equal(ours, theirs)


@needs_triton
def test_several_rows_may_go_to_a_lane_that_nobody_reads(interpreted):
    index = torch.tensor([2, 4, 4, 4])
    pools = interpreted(written, "triton", 6, None, index, 4)
    values = leaves(4, 1, spare=True)
    for pool, before, value in zip(pools, leaves(6, 0, spare=False), values, strict=True):
        assert torch.equal(pool[2], value[0])
        for lane in (0, 1, 3, 5):
            assert torch.equal(pool[lane], before[lane])


@needs_triton
def test_more_leaves_than_a_launch_takes(interpreted):
    assert interpreted(_many, 70) == list(range(70))


def _many(count: int) -> list[float]:
    pools = [torch.zeros(2, 3) for _ in range(count)]
    values = [torch.full((2, 3), float(i)) for i in range(count)]
    write_rows(pools, values, implementation="triton")
    assert all((pool == pool[0, 0]).all() for pool in pools)
    return [float(pool[0, 0]) for pool in pools]


@needs_triton
def test_what_does_not_fit(interpreted):
    for wrong in ("shape", "type", "lanes", "count", "active"):
        assert "want" in interpreted(_error, wrong)
    assert "one piece" in cannot_write([torch.zeros(2, 4, 3)[:, :, :2]])
    assert "complex64" in cannot_write([torch.zeros(2, 4, dtype=torch.complex64)])


def _error(wrong: str) -> str:
    pool, active = torch.zeros(4, 3), None
    values = [torch.zeros(4, 2) if wrong == "shape" else torch.zeros(4, 3)]
    if wrong == "type":
        values = [values[0].double()]
    if wrong == "lanes":
        values = [values[0][:2]]
    if wrong == "count":
        values *= 2
    if wrong == "active":
        active = torch.ones(3, dtype=torch.bool)
    try:
        write_rows([pool], values, active=active, implementation="triton")
    except ValueError as error:
        return str(error)
    return ""
