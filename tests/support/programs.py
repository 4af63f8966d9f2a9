"""Compiled steps beside the same steps in torch, on the same state and the same weights."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from streamenc import state as states
from streamenc.compiled.program import Program
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.team import Team
from streamenc.compiled.weights import Weights
from streamenc.layers.streamed import Streamed
from streamenc.models.model import Model
from streamenc.state import State
from tests.support.compare import assert_close

# What float32 loses where sums are made in another order, of the largest number.
ROUNDING = 1e-5


def randomized(module: nn.Module, seed: int = 0, gain: float = 1.3) -> None:
    """Weights that keep signals near unit size; vectors near one where they scale."""
    generator = torch.Generator().manual_seed(seed)
    for name, numbers in module.state_dict().items():
        if not numbers.is_floating_point():
            continue
        noise = torch.randn(numbers.shape, generator=generator)
        if numbers.ndim > 1:
            numbers.copy_(gain * noise / numbers[0].numel() ** 0.5)
        else:
            numbers.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))


def compiled_step(
    layer: Streamed, x: Tensor, state: State, precision: str = "float32"
) -> tuple[Tensor, State]:
    """A layer's step in mid-stream as a program of its own, on a copy of the state."""
    one = states.lane(state, 0)
    with torch.inference_mode():
        plan = Plan(Weights(precision), one, 1)
        value = plan.input(x.shape[2], x.shape[1])
        plan.finish(layer.lower(plan, value, one))
        return Program(plan).step(x, states.clone(state), Team(), 1)


def assert_states_close(ours: State, theirs: State, tolerance: float = ROUNDING) -> None:
    assert states.form(ours) == states.form(theirs)
    for mine, wanted in zip(states.leaves(ours), states.leaves(theirs), strict=True):
        if mine.is_floating_point():
            assert_close(mine, wanted, tolerance)
        else:
            assert torch.equal(mine, wanted)


def pieces(model: Model, x: Tensor, seed: int, most_hops: int) -> list[Tensor]:
    """A first step, and steps of 1 hop to one more than there are programs for."""
    chance = random.Random(seed)
    cuts = [model.spec.lead]
    while cuts[-1] < x.shape[2]:
        cuts.append(cuts[-1] + chance.randint(1, most_hops + 1) * model.spec.hop)
    return [piece for piece in x.tensor_split(cuts, dim=2) if piece.shape[2]]


def steps(
    models: Sequence[Model], inputs: Sequence[Tensor], *, end: bool = False
) -> tuple[Tensor, State]:
    """The outputs for all inputs, of which each goes to the next of the models in turn, and the
    state behind them; None where the last input ends the stream."""
    state: State = None
    outputs = []
    with torch.inference_mode():
        for index, x in enumerate(inputs):
            last = end and index + 1 == len(inputs)
            y, state = models[index % len(models)].step(x, state, end=last)
            outputs.append(y)
    return torch.cat(outputs, dim=2), None if end else state
