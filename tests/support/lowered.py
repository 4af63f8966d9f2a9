"""A layer's own step beside the instructions that it has for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.compiled.program import Program
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.team import Team
from streamenc.compiled.weights import Weights
from streamenc.layers.streamed import Prepared, Streamed
from streamenc.state import State


def random_weights(layer: torch.nn.Module, seed: int = 0, gain: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))


def prepare(layer: torch.nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, Prepared):
            module.prepare()


def lowered(
    layer: Streamed, x: Tensor, state: State, *, precision: str = "float32", hops: int = 1
) -> Program:
    """A program of the step of `x`, behind which torch's has the same weights, rounded or not.

    state  In mid-stream; as an example only.
    """
    example = states.lane(state, 0)
    plan = Plan(Weights(precision), example, hops)
    value = plan.input(x.shape[2], x.shape[1])
    plan.finish(layer.lower(plan, value, example))
    prepare(layer)
    return Program(plan)


def run(program: Program, x: Tensor, state: State) -> tuple[Tensor, State]:
    return program.step(x, states.clone(state), Team(), 1)


def assert_same_step(
    layer: Streamed, x: Tensor, state: State, *, tolerance: float = 1e-5, **how: Any
) -> None:
    """Output and state of one step in mid-stream, compiled, are those of torch; and each lane's are
    to the bit what it gets alone."""
    with torch.inference_mode():
        program = lowered(layer, x, state, **how)
        expected, after = layer.step(x, states.clone(state))
        y, following = run(program, x, state)
        _close(y, expected, tolerance)
        assert states.form(following) == states.form(after)
        for ours, theirs in zip(states.leaves(following), states.leaves(after), strict=True):
            _close(ours, theirs, tolerance)
        for lane in range(len(x)):
            alone, left = run(program, x[lane : lane + 1], states.lane(state, lane))
            assert torch.equal(alone, y[lane : lane + 1])
            for ours, whole in zip(states.leaves(left), states.leaves(following), strict=True):
                assert torch.equal(ours, whole[lane : lane + 1])


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs)
        return
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    assert ours.isfinite().all()
    assert float((ours - theirs).abs().max()) <= tolerance * max(scale, 1e-30)
