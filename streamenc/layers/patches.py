"""Patches: neighbours along time become channels, and channels neighbours again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue


class Patches(Streamed):
    """(batch, channels, time) -> (batch, channels * size, time / size).

    What fills no patch at the end of the stream is left out.

    stacked  All channels of a patch's first position come first, then those of the next; else all
             positions of the first channel.
    """

    def __init__(self, size: int, *, stacked: bool = False) -> None:
        super().__init__()
        self.size, self.stacked = size, stacked

    @property
    def steps(self) -> Steps:
        return Steps(self.size, self.size)

    def reach(self, first: int, last: int) -> Span:
        return first * self.size, (last + 1) * self.size - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, channels, time = x.shape
        tail = time % self.size
        assert end or not tail
        patches = x[..., : time - tail].reshape(batch, channels, time // self.size, self.size)
        order = (0, 3, 1, 2) if self.stacked else (0, 1, 3, 2)
        return patches.permute(order).flatten(1, 2).contiguous(), None

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return plan.patched(x, self.size, stacked=self.stacked)


class Unpatched(Streamed):
    """(batch, channels * size, time) -> (batch, channels, time * size): undoes `Patches`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    def steps(self) -> Steps:
        return Steps(lead_out=self.size, hop_out=self.size)

    def reach(self, first: int, last: int) -> Span:
        return first // self.size, last // self.size

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, channels, time = x.shape
        patches = x.reshape(batch, channels // self.size, self.size, time)
        return patches.transpose(2, 3).flatten(2), None

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return plan.unpatched(x, self.size)
