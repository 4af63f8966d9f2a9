"""rotary_table against cos and sin in float64, as torch and as Triton kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamenc_kernels import rotary, rotary_table
from streamenc_kernels.dispatch import Implementation
from tests.support.interpreter import needs_triton

# A day at 25 positions a second, and two years.
POSITIONS = [0, 1, 17, 249, 90_000, 2_160_001, 1_576_800_003]


def table(
    implementation: Implementation, positions: list[int], time: int, dim: int, theta: float
) -> tuple[Tensor, Tensor]:
    return rotary_table(torch.tensor(positions), time, dim, theta, implementation=implementation)


@needs_triton
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize(
    ("time", "dim", "theta"),
    [(1, 64, 1e4), (2, 64, 1e4), (3, 10, 1e6), (5, 2, 500.0), (8, 256, 1.0)],
)
def test_angles_are_exact_for_years(interpreted, implementation, time, dim, theta):
    cos, sin = interpreted(table, implementation, POSITIONS, time, dim, theta)
    positions = torch.tensor(POSITIONS)[:, None] + torch.arange(time)
    wanted = rotary(positions, dim, theta, torch.float64)
    for ours, theirs in zip((cos, sin), wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == (len(POSITIONS), 1, time, dim // 2)
        error = (ours.double() - theirs).abs()
        # Half of float32's last place; and what float64 has left of an angle of 1.6e9.
        assert error[:6].max() < 3.1e-8 and error.max() < 1e-6


@needs_triton
def test_a_ring_of_the_kernel_takes_its_table_in_one_launch():
    from streamenc_kernels import plan_ring
    from tests.support.launches import FakeGpu

    gpu = FakeGpu()
    position, keys = (
        gpu.empty(torch.zeros(3, dtype=torch.int64)),
        gpu.empty(torch.zeros(3, 2, 9, 8)),
    )
    plan, launches = gpu.trace(lambda: plan_ring(position, 2, keys, 8, 1e4))
    assert dict(launches) == {"rotary_table_kernel": 1} and plan.cos.shape == (3, 1, 2, 4)
