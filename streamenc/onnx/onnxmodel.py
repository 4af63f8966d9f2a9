"""OnnxModel: a model whose live steps run in ONNX Runtime, beside torch on the same state."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from streamenc.errors import UsageError
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.onnx.build import build
from streamenc.onnx.runner import Runner
from streamenc.spec import Steps
from streamenc.state import State

# Longer steps are bound by computing, which torch does as fast.
MOST_HOPS = 8


class OnnxModel(Model):
    """`model`, whose steps of up to `MOST_HOPS` hops run as ONNX steps.

    First steps, ends and longer steps run in torch: the state is the same, and the two take turns.
    `warm_up` exports a step, or finds it on disk; a stream's first step calls it. It holds the
    weights as they were then, so they cannot be changed or moved.
    """

    runs_in: ClassVar[str] = "onnx"

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.spec = model, model.spec
        self._runners: dict[int, Runner] = {}

    @property
    def steps(self) -> Steps:
        return self.model.steps

    def reach(self, first: int, last: int) -> Span:
        return self.model.reach(first, last)

    def warm_up(self, hops: int = 1) -> None:
        """Exports the step of `hops` hops, if it is not there."""
        length = hops * self.spec.hop
        if hops <= MOST_HOPS and length not in self._runners:
            self._runners[length] = build(self.model, hops)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        runner = None if end or state is None else self._runners.get(x.shape[2])
        if runner is None:
            return self.model.step(x, state, end=end)
        return runner.step(x, state)

    @property
    def like(self) -> Tensor:
        return self.model.like

    def before(self, x: Signal) -> Tensor:
        return self.model.before(x)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        return self.model.after(y, codebooks)

    def fingerprint(self) -> str:
        """That of the model: a snapshot fits either backend."""
        return self.model.fingerprint()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise UsageError(
            f"{self.spec.name} runs as ONNX steps, whose weights are fixed; load it again, with "
            "the device or dtype that you want"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runners": {}}
