"""ring_attention against softmax over all that a stream has had, as torch and as Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from streamenc_kernels import cannot_attend, plan_ring, ring_attention
from streamenc_kernels.dispatch import Implementation
from tests.support.compare import assert_close
from tests.support.interpreter import needs_triton

THETA = 10_000.0
FLOAT = torch.float32

Step = tuple[Tensor, Tensor, Tensor]
# Outputs of each step, and the keys and values that are left in the ring.
Result = tuple[list[Tensor], Tensor, Tensor]


def noise(lanes: int, heads: int, dim: int, times: Sequence[int], dtype=FLOAT) -> list[Step]:
    """Queries, keys and values of each step, laid out as one projection gives them."""
    generator = torch.Generator().manual_seed(dim)

    def step(time: int) -> Step:
        qkv = torch.randn(lanes, time, 3, heads, dim, generator=generator).to(dtype)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    return [step(time) for time in times]


def run(
    implementation: Implementation,
    steps: Sequence[Step],
    window: int,
    max_step: int,
    start: Sequence[int],
    ring: tuple[Tensor, Tensor] | None = None,
    active: Sequence[Sequence[bool]] | None = None,
    masked: bool = False,
) -> Result:
    """Steps in turn; a lane that is not active in a step keeps its position.

    masked  Whether the op is told which lanes are active, and leaves the others' rings alone.
    """
    lanes, heads, _, dim = steps[0][0].shape
    if ring is None:
        shape = (lanes, heads, window + max_step - 1, dim)
        ring = (steps[0][0].new_zeros(shape), steps[0][0].new_zeros(shape))
    keys, values = ring
    position = torch.tensor(start)
    outputs = []
    for index, (q, k, v) in enumerate(steps):
        time = q.shape[2]
        lively = torch.tensor(active[index] if active else [True] * lanes)
        mask = lively if masked else None
        plan = plan_ring(
            position, time, keys, window, THETA, active=mask, implementation=implementation
        )
        outputs.append(ring_attention(q, k, v, keys, values, plan))
        position = position + time * lively
    return outputs, keys, values


@pytest.fixture(params=["torch", pytest.param("triton", marks=needs_triton)])
def step_through(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """`run` with one implementation, wherever that can run."""
    if request.param == "torch":
        return lambda *arguments: run("torch", *arguments)
    interpreted = request.getfixturevalue("interpreted")
    return lambda *arguments: interpreted(run, "triton", *arguments)


def definition(steps: Sequence[Step], window: int, start: int) -> Tensor:
    """Softmax over the window before each position of one lane, (heads, time, dim), in float64."""
    q, k, v = (torch.cat([step[i][0] for step in steps], dim=1).double() for i in range(3))
    time, dim = q.shape[1:]
    at = torch.arange(time)
    angle = (start + at)[:, None] * THETA ** (-torch.arange(0, dim, 2).double() / dim)
    turn = torch.polar(torch.ones_like(angle), angle)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    score = turned(q) @ turned(k).transpose(1, 2) * dim**-0.5
    age = at[:, None] - at[None]
    score = score.masked_fill((age < 0) | (age >= window), float("-inf"))
    return score.softmax(dim=-1) @ v


def assert_streams(
    result: Result, steps: Sequence[Step], window: int, start: Sequence[int], rel: float
) -> None:
    y = torch.cat(result[0], dim=2)
    assert y.dtype == steps[0][0].dtype
    for lane, begin in enumerate(start):
        own = [tuple(x[lane : lane + 1] for x in step) for step in steps]
        assert_close(y[lane], definition(own, window, begin), rel)


@pytest.mark.parametrize(
    "dim", [24, *(pytest.param(dim, marks=pytest.mark.slow) for dim in (2, 8, 64))]
)
@pytest.mark.parametrize(
    ("window", "max_step", "times"),
    [
        (7, 1, [1] * 12),
        (7, 2, [2] * 10),
        (5, 3, [3, 1, 2, 3, 3, 2, 1, 3, 1]),
        (1, 2, [2, 1, 2]),
        (40, 5, [5] * 11),
    ],
    ids=str,
)
def test_steps_past_the_window_and_round_the_ring(step_through, window, max_step, times, dim):
    steps = noise(1, 2, dim, times)
    result = step_through(steps, window, max_step, [0])
    assert_streams(result, steps, window, [0], 1e-5)


@pytest.mark.parametrize(
    ("dtype", "rel"),
    [
        (FLOAT, 1e-5),
        pytest.param(torch.bfloat16, 2e-2, marks=pytest.mark.slow),
        (torch.float16, 2e-3),
    ],
)
def test_lanes_at_different_positions(step_through, dtype, rel):
    """Each as if alone; they begin late, where a ring of zeros stands for nothing."""
    steps, start = noise(3, 2, 16, [2, 3, 1, 3], dtype), [0, 5, 3_000]
    result = step_through(steps, 7, 3, [0, 0, 0])
    assert_streams(result, steps, 7, [0, 0, 0], rel)
    # One joins with what it has had so far.
    first, keys, values = step_through(steps[:2], 7, 3, start)
    assert_close(first[0][:1], result[0][0][:1], 1e-6)
    rest = step_through(steps[2:], 7, 3, [5, 10, 3_005], (keys, values))
    assert_close(rest[0][1][:1], result[0][3][:1], 1e-6)


def test_positions_of_hours(step_through):
    """Angles that float32 would have lost: ten hours at 25 positions a second."""
    start = 25 * 36_000
    steps = noise(1, 2, 32, [2] * 9)
    # The window begins anew where nothing was held: fill it first, then compare.
    y, *_ = step_through(steps, 7, 2, [start])
    late = torch.cat(y[4:], dim=2)[0]
    assert_close(late, definition(steps, 7, start)[:, 8:], 1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_idle_lanes_go_on_as_if_nothing_had_happened(step_through, masked):
    steps = noise(2, 2, 8, [3, 3, 3, 2, 1, 3, 3])
    idle = {2, 3, 5}
    active = [[True, index not in idle] for index in range(len(steps))]
    y, *_ = step_through(steps, 7, 3, [0, 0], None, active, masked)
    assert_streams(
        ([x[:1] for x in y], *_), [(q[:1], k[:1], v[:1]) for q, k, v in steps], 7, [0], 1e-5
    )
    taken = [index for index in range(len(steps)) if index not in idle]
    own = [tuple(x[1:] for x in steps[index]) for index in taken]
    assert_streams(([y[index][1:] for index in taken], *_), own, 7, [0], 1e-5)
    if masked:
        assert all(not y[index][1].any() for index in idle)


def test_a_masked_lane_keeps_its_ring_to_the_bit(step_through):
    steps = noise(2, 2, 8, [3] * 4)
    _, keys, values = step_through(steps, 7, 3, [0, 0])
    held = keys.clone(), values.clone()
    mask = [[False, True]]
    _, keys, values = step_through(steps[:1], 7, 3, [12, 12], (keys, values), mask, True)
    for before, after in zip(held, (keys, values), strict=True):
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])


def run_by_lanes(
    implementation: Implementation,
    steps: Sequence[Step],
    window: int,
    max_step: int,
    positions: Sequence[int],
    pool: tuple[Tensor, Tensor],
    ready: Sequence[Sequence[int]],
) -> Result:
    """Steps of some lanes of a pool, any in each; the batch's other rows have the last lane."""
    keys, values = pool
    batch, position = steps[0][0].shape[0], torch.tensor(positions)
    outputs = []
    for (q, k, v), lanes in zip(steps, ready, strict=True):
        index = torch.tensor([*lanes, *[len(positions) - 1] * (batch - len(lanes))])
        plan = plan_ring(
            *(position[index], q.shape[2], keys, window, THETA),
            lanes=index,
            implementation=implementation,
        )
        outputs.append(ring_attention(q, k, v, keys, values, plan))
        position[list(lanes)] += q.shape[2]
    return outputs, keys, values


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
def test_lanes_of_a_pool_by_index(implementation, dtype, request):
    """Each as by itself; what lanes hold that no row has stays to the bit."""
    window, max_step, dim, rel = 7, 3, 24, 1e-5 if dtype == FLOAT else 2e-2
    ready = [[4, 1], [1], [0, 4, 1], [4, 0], [1, 0, 4], [4], [4, 1, 0]]
    times = [3, 1, 3, 2, 3, 2, 3]
    steps = noise(3, 2, dim, times, dtype)
    generator = torch.Generator().manual_seed(1)
    shape = (7, 2, window + max_step - 1, dim)
    pool = tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    before = [part.clone() for part in pool]
    arguments = (implementation, steps, window, max_step, [0] * 7, pool, ready)
    if implementation == "triton":
        result = request.getfixturevalue("interpreted")(run_by_lanes, *arguments)
    else:
        result = run_by_lanes(*arguments)
    for lane in (0, 1, 4):
        rows = [(lanes.index(lane) if lane in lanes else None) for lanes in ready]
        taken = [
            (y[row : row + 1], tuple(x[row : row + 1] for x in step))
            for y, step, row in zip(result[0], steps, rows, strict=True)
            if row is not None
        ]
        own = torch.cat([y for y, _ in taken], dim=2)[0]
        assert_close(own, definition([step for _, step in taken], window, 0), rel)
    for old, new in zip(before, result[1:], strict=True):
        assert torch.equal(old[[2, 3, 5]], new[[2, 3, 5]])
        assert not torch.equal(old[[0, 1, 4]], new[[0, 1, 4]])


def run_wide(*arguments: Any) -> Result:
    """As for few programs on a large GPU."""
    module = import_module("streamenc_kernels.ring_attention.triton")
    with mock.patch.object(module, "_processors", lambda x: 1_000):
        return run("triton", *arguments)


@needs_triton
@pytest.mark.parametrize(("window", "dim", "times"), [(70, 24, [3] * 30), (7, 8, [2, 1, 3])])
def test_few_programs_read_more_at_once(interpreted, window, dim, times):
    steps = noise(2, 1, dim, times)
    assert_streams(interpreted(run_wide, steps, window, 3, [0, 0]), steps, window, [0, 0], 1e-5)


@needs_triton
def test_the_kernel_reads_nothing_that_no_query_sees(interpreted):
    """Slots that were never written, and dead ones, may hold anything."""
    steps = noise(2, 2, 8, [2, 3, 1, 3])
    poison = torch.full((2, 2, 9, 8), float("nan"))
    result = interpreted(run, "triton", steps, 7, 3, [0, 0], (poison, poison.clone()))
    assert_streams(result, steps, 7, [0, 0], 1e-5)
    _, keys, values = interpreted(run, "triton", noise(1, 2, 8, [3] * 5), 7, 3, [0])
    # The next three go over the positions 6 to 8, which is more than six before 15.
    keys[:, :, 6:9] = values[:, :, 6:9] = float("nan")
    y, *_ = interpreted(run, "triton", noise(1, 2, 8, [3]), 7, 3, [15], (keys, values))
    assert y[0].isfinite().all()


@needs_triton
def test_both_write_the_same_ring(interpreted):
    steps = noise(2, 2, 24, [2, 3, 1, 3, 3])
    ours, theirs = (interpreted(run, how, steps, 7, 3, [0, 90_000]) for how in ("torch", "triton"))
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert_close(b, a, 1e-6)


@needs_triton
def test_what_it_cannot_take(interpreted):
    ring = torch.zeros(2, 3, 9, 8)
    assert interpreted(cannot_attend, ring, 3) == ""
    wrong = {
        "torch.float64": (ring.double(), 3),
        "9 new positions": (ring, 9),
        "heads of 7": (torch.zeros(2, 3, 9, 7), 3),
        "heads of 258": (torch.zeros(2, 3, 9, 258), 3),
        "not contiguous": (ring.transpose(1, 2), 3),
    }
    for reason, (keys, time) in wrong.items():
        assert reason in interpreted(_reason, keys, time)


def _reason(keys: Tensor, time: int) -> str:
    # What travels between processes is contiguous again.
    if keys.shape[1] == 9:
        keys = keys.transpose(1, 2).contiguous().transpose(1, 2)
    return cannot_attend(keys, time)


def test_a_ring_that_is_too_short():
    with pytest.raises(ValueError, match="3 new positions; a ring of 8 for a window of 7 takes 1"):
        plan_ring(torch.zeros(1, dtype=torch.int64), 3, torch.zeros(1, 2, 8, 4), 7, THETA)


def test_shapes_that_do_not_fit():
    ring, x = torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 2, 4)
    plan = plan_ring(torch.zeros(1, dtype=torch.int64), 2, ring, 7, THETA)
    with pytest.raises(ValueError, match="do not fit"):
        ring_attention(x, x, x, ring, ring[:, :, :7], plan)
    one = x[:, :, :1]
    with pytest.raises(ValueError, match="the plan is for"):
        ring_attention(one, one, one, ring, ring, plan)
    zero = torch.zeros(1, dtype=torch.int64)
    plan = plan_ring(zero, 2, ring, 7, THETA, lanes=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the plan's lanes are \(2,\); wanted \(1,\)"):
        ring_attention(x, x, x, ring, ring, plan)
