"""StaticModel: a model whose live steps run as static graphs, beside torch on the same state."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from streamenc.models.base import Model, Signal
from streamenc.state import State
from streamenc.static.build import build
from streamenc.static.precision import Precision
from streamenc.static.runner import Runner

log = logging.getLogger(__name__)
# Longer steps are bound by computing, which torch does as fast.
MOST_HOPS = 8


class StaticModel(Model):
    """`model`, whose steps of up to `MOST_HOPS` hops run as static graphs.

    First steps, ends and longer steps run in torch: the state is the same, and the two take turns.
    A graph is made, or found on disk, when the first stream with its number of hops opens.
    """

    def __init__(self, model: Model, precision: Precision = "float32") -> None:
        super().__init__()
        self.model, self.precision, self.spec = model, precision, model.spec
        self._runners: dict[int, Runner] = {}

    def ready(self, hops: int = 1) -> None:
        """Makes the graph for steps of `hops` hops, if it is not there."""
        length = hops * self.spec.hop
        if hops <= MOST_HOPS and length not in self._runners:
            graph = build(self.model, hops, self.precision)
            self._runners[length] = Runner(graph, torch.get_num_threads())

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        runner = None if end or state is None else self._runners.get(x.shape[-1])
        if runner is None:
            return self.model.step(x, state, end=end)
        return runner.step(x, state)

    @property
    def like(self) -> Tensor:
        return self.model.like

    def enter(self, x: Signal) -> Tensor:
        return self.model.enter(x)

    def leave(self, y: Tensor, codebooks: int | None = None) -> Signal:
        return self.model.leave(y, codebooks)

    def fingerprint(self) -> str:
        """That of the model: a snapshot fits either backend, but not another precision."""
        inner = self.model.fingerprint()
        return inner if self.precision == "float32" else f"{inner}-{self.precision}"
