"""The life of graphs on a device: forgotten and captured anew, evicted, failed, out of memory.

Each check compares with eager steps, and looks at which stream is current afterwards: what runs on
another than the usual one is read before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.gpu.phase import Found, Phase
from bench.gpu.phases.models import MIMI, NANO, SMALL, Case, Lanes
from bench.gpu.timing import FLOAT32_LIMIT, collect, float32_as, open_device, relative_error
from streamenc.engine.cudagraph import MAX_UNUSED, GraphedStep, Replay
from streamenc.engine.pages import by_index
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.state import State

SUBJECT = "graphs"
CYCLES = 3


def run(phase: Phase) -> None:
    """The phase `graphs`."""
    device = open_device(phase)
    with float32_as("ieee"):
        case = SMALL if phase.dry else MIMI
        model, other = case.load(phase.folder, device), NANO.load(phase.folder, device)
        checks: dict[str, Callable[[], Found]] = {
            "forgotten and captured anew": lambda: forgotten(case, model),
            "evicted while another model's stay": lambda: evicted(case, model, other),
            "a capture that waits for the host": lambda: failed(case, model, _waits, other),
            "a capture that finds no memory": lambda: failed(case, model, _takes_all, other),
        }
        for name, check in checks.items():
            phase.check(SUBJECT, f"graphs: {name}", check)
            collect(device)


class Pair:
    """The same streams by graphs and by eager steps."""

    def __init__(self, case: Case, model: Model, graphs: GraphedStep, count: int = 2) -> None:
        self.model, self.graphs = model, graphs
        self.lanes, self.eager = (Lanes(case, model, count) for _ in range(2))
        self.error = 0.0

    def step(self, index: int = 0) -> None:
        """One step of both; keeps the largest error."""
        lanes = self.lanes
        x = lanes.inputs[index % len(lanes.inputs)]
        with torch.inference_mode():
            y = self.graphs(x, lanes.pages, lanes.everyone)
            wanted = by_index(self.model, x, self.eager.pages, lanes.everyone)
            self.error = max(self.error, relative_error(y, wanted))


def graphed(model: Model) -> GraphedStep:
    """Where there are no graphs, what stands for one computes anew."""
    return GraphedStep(model, None if model.like.is_cuda else _anew)


def forgotten(case: Case, model: Model) -> Found:
    """A graph whose memory was given back is captured anew, and anew."""
    graphs = graphed(model)
    pair = Pair(case, model, graphs)
    for cycle in range(CYCLES):
        pair.step(cycle)
        pair.step(cycle + 1)
        if graphs.reasons:
            return Found(wrong=f"cycle {cycle}: {graphs.reasons}")
        graphs.forget()
        if graphs.held:
            return Found(wrong=f"{graphs.held} graphs are held after all were forgotten")
    return Found(pair.error, FLOAT32_LIMIT, note=_stream(model))


def evicted(case: Case, model: Model, other: Model) -> Found:
    """Graphs of one model are given up until all of the device are retired; another's go on."""
    graphs, others = graphed(model), graphed(other)
    stays = Pair(case, model, graphs)
    stays.step()
    error = 0.0
    for count in range(MAX_UNUSED + 3):
        goes = Pair(NANO, other, others, 1 + count % 2)
        goes.step()
        others.forget()
        stays.step(count)
        error = max(error, goes.error)
    reasons = graphs.reasons | others.reasons
    if reasons:
        return Found(wrong=f"no graph: {reasons}")
    if others.held:
        return Found(wrong=f"{others.held} graphs are held after all were forgotten")
    return Found(max(error, stays.error), FLOAT32_LIMIT, note=_stream(model))


def failed(case: Case, model: Model, harm: Callable[[Tensor], Any], other: Model) -> Found:
    """A capture fails: its steps go on without, on the usual stream, and others' graphs stay."""
    usual = _current(model)
    stays = Pair(NANO, other, graphed(other))
    stays.step()
    graphs = graphed(model)
    pair = Pair(case, model, graphs)
    with _harmed(model, harm):
        for index in range(3):
            pair.step(index)
    for index in range(3):
        stays.step(index)
    if not graphs.reasons:
        return Found(wrong="it did not fail")
    if _current(model) != usual:
        return Found(wrong="another stream is current now: steps without a graph would race")
    note = "; ".join(graphs.reasons.values())[:120]
    return Found(max(pair.error, stays.error), FLOAT32_LIMIT, note=note)


@contextmanager
def _harmed(model: Model, harm: Callable[[Tensor], Any]) -> Iterator[None]:
    """Its steps do something in a capture, and in it alone, that no capture allows."""
    step = model.step

    def harmed(x: Tensor, state: State, *, end: bool = False) -> Any:
        y, after = step(x, state, end=end)
        if _capturing(model):
            harm(y)
        return y, after

    model.step = harmed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.step


def _waits(y: Tensor) -> None:
    if not y.is_cuda:
        raise RuntimeError("a stand-in for what a device says of a host that waits")
    y.sum().item()


def _takes_all(y: Tensor) -> None:
    if not y.is_cuda:
        raise torch.OutOfMemoryError("a stand-in for what a device says that is full")
    whole = torch.cuda.get_device_properties(y.device).total_memory
    y.new_empty(whole, dtype=torch.uint8)


# Of the stand-in, which has no stream.
_ANEW = {"capturing": False}


def _anew(call: Callable[[], Signal]) -> Replay:
    _ANEW["capturing"] = True
    try:
        output = call()
    finally:
        _ANEW["capturing"] = False
    assert isinstance(output, Tensor)
    return Replay(lambda: output.copy_(call()), output)


def _capturing(model: Model) -> bool:
    if model.like.is_cuda:
        return torch.cuda.is_current_stream_capturing()
    return _ANEW["capturing"]


def _current(model: Model) -> Any:
    return torch.cuda.current_stream(model.like.device) if model.like.is_cuda else None


def _stream(model: Model) -> str:
    usual = not model.like.is_cuda or _current(model) == torch.cuda.default_stream()
    return "" if usual else "not on the usual stream"
