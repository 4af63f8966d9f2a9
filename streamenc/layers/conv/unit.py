"""The residual unit of the SEANet family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.streamed import Chain, Residual
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue


class ResidualUnit(Residual):
    """Two causal convolutions with an ELU before each, beside the identity or a convolution.

    (batch, channels, time) -> the same shape. A `Residual` whose chain is numbered as the published
    layers are, activations included; but each convolution has its ELU within, and the second one
    adds what stands beside it, which on a GPU takes no launches of their own.

    State: that of Residual, ((first's, second's), shortcut's, None).
    """

    def __init__(
        self, first: CausalConv1d, second: CausalConv1d, shortcut: CausalConv1d | None = None
    ) -> None:
        assert first.elu and second.elu
        super().__init__(Chain([nn.Identity(), first, nn.Identity(), second]), shortcut)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        before, short_before, _ = state if isinstance(state, tuple) else (None, None, None)
        first_before, second_before = before if isinstance(before, tuple) else (None, None)
        _, first, _, second = self.block.layers  # type: ignore[misc]  # a Chain's
        y, first_after = first.step(x, first_before, end=end)
        short, short_after = x, None
        if self.shortcut is not None:
            short, short_after = self.shortcut.step(x, short_before, end=end)
        y, second_after = second.step_onto(y, second_before, short, end=end)
        return y, ((first_after, second_after), short_after, None)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, tuple)
        (first_state, second_state), short_state, _ = state  # type: ignore[misc]  # its form
        _, first, _, second = self.block.layers  # type: ignore[misc]  # a Chain's
        y = first.lower(plan, x, first_state)
        short = x if self.shortcut is None else self.shortcut.lower(plan, x, short_state)
        lowered: AnyValue = second.lower_onto(plan, y, second_state, short)
        return lowered
