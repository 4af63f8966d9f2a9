"""Nothing: a model around which what remains is the engine's own work."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State


class Nothing(Model):
    """Of each 320 samples the first two, and how many steps there were: it counts them in its
    state, and computes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anything", torch.zeros(1))
        self.spec = StreamSpec(
            name="nothing",
            input=Port("audio", Fraction(16_000), 1),
            output=Port("features", Fraction(50), 3),
            steps=Steps(320, 320),
            equality="offline",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        count = x.new_zeros(x.shape[0], 1) if state is None else state
        assert isinstance(count, Tensor)
        if not x.shape[2]:
            return x.new_zeros(x.shape[0], 3, 0), count
        count = count + 1
        return torch.cat((x[:, 0, :2], count), dim=1)[:, :, None], count
