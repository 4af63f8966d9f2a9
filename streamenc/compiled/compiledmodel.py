"""CompiledModel: a model whose live steps run as programs, beside torch on the same state."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from streamenc.compiled.program import Program
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.team import cores, team
from streamenc.compiled.weights import Weights
from streamenc.errors import CannotLower, UsageError
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Steps
from streamenc.state import State
from streamenc.threads import step_threads

# Longer steps are bound by computing, which torch does as fast.
MOST_HOPS = 8


class CompiledModel(Model):
    """`model`, whose steps of up to `MOST_HOPS` hops in mid-stream run as programs.

    First steps, ends and longer steps run in torch: the state is the same, and the two take turns.
    """

    def __init__(self, model: Model, precision: str = "int16") -> None:
        super().__init__()
        self.model, self.precision, self.spec = model, precision, model.spec
        self._fingerprint = model.fingerprint()
        self._weights = Weights(precision)
        self._programs: dict[int, Program] = {}
        self._team = team()
        self.warm_up(1)
        model.prepare()  # its weights may be others now

    @property
    def steps(self) -> Steps:
        return self.model.steps

    def reach(self, first: int, last: int) -> Span:
        return self.model.reach(first, last)

    def warm_up(self, hops: int = 1) -> None:
        length = hops * self.spec.hop
        if hops > MOST_HOPS or length in self._programs:
            return
        self._programs[length] = self._plan(hops)

    def _plan(self, hops: int) -> Program:
        """Raises CannotLower."""
        spec, model = self.spec, self.model
        if spec.scaled:
            raise CannotLower(
                f"{spec.name} works in whole segments of {spec.hop} items, whose time goes into "
                "computing, which torch does as fast"
            )
        shape = (1, spec.input.channels, spec.lead)
        with torch.inference_mode():
            codes = spec.input.kind == "codes"
            first = torch.zeros(shape, dtype=torch.int64 if codes else torch.float32)
            x = model.before(first)
            _, state = model.step(x, None)
        plan = Plan(self._weights, state, hops)
        value = plan.input(hops * spec.hop, x.shape[1])
        plan.finish(model.lower(plan, value, state))
        return Program(plan)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        program = None if end or state is None else self._programs.get(x.shape[2])
        if program is None:
            return self.model.step(x, state, end=end)
        threads = step_threads(self.spec, x.shape[2] // self.spec.hop)
        return program.step(x, state, self._team, min(threads, cores()))

    @property
    def like(self) -> Tensor:
        return self.model.like

    def before(self, x: Signal) -> Tensor:
        return self.model.before(x)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        return self.model.after(y, codebooks)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise UsageError(
            f"{self.spec.name} runs as compiled steps, whose weights are fixed; load it again, "
            "with the device or dtype that you want"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}
