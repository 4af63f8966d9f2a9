"""The whole step under a CUDA graph: one launch instead of hundreds.

A graph replays the same kernels on the same addresses. So there is one for each shape of the input
and each place of the lanes: for each bucket of them, whichever lanes a step takes. Inputs are
copied to where the graph reads them, and outputs from where it writes them before the next replay
overwrites them. What is committed is committed within the graph. Nothing in it waits for the host.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from streamenc.engine.pages import Pages, by_index
from streamenc.models.model import Model
from streamenc.models.signal import Signal, clone

log = logging.getLogger(__name__)

# Buckets are powers of two, each with a graph for the step and one for each number of codebooks
# that streams ask for; beyond, the one that was not used for longest goes.
MAX_GRAPHS = 32
# A capture that finds no memory is tried again after so many runs without it, about a minute of
# Mimi, and so many times in all: each try that fails gives up the other graphs.
RETRY_AFTER_RUNS = 1000
MAX_TRIES = 4
# Runs before the capture, in which libraries choose their kernels, make plans and take memory.
WARMUP_RUNS = 3


class Replay(NamedTuple):
    """replay: computes anew, from the inputs' memory to that of `output`."""

    replay: Callable[[], None]
    output: Signal


# Runs the given call until it is warm, and makes it replayable.
Capture: TypeAlias = Callable[[Callable[[], Signal]], Replay]


class _Captured(NamedTuple):
    inputs: tuple[Tensor, ...]
    captured: Replay


class GraphedStep:
    """What `IndexedLanes` runs, and `after` for what it gives, by graphs captured when needed.

    Where a capture fails, it says so in the log and computes without graphs from then on; where it
    only finds no memory, until some runs later.

    capture  What makes a call replayable; for tests. None captures on the model's device.
    reasons  Why "step" or "after" runs without graphs now; empty where both run with them.
    """

    def __init__(self, model: Model, capture: Capture | None = None) -> None:
        self.model = model
        self.reasons: dict[str, str] = {}
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._tries = dict.fromkeys(("step", "after"), 0)  # that found no memory
        self._pauses: dict[str, int] = {}  # runs until the next try
        self._capture = capture or Recorder(model.like.device)
        reason = model.uncapturable or ("" if capture else cannot_capture(model.like.device))
        if reason:
            self._fall_back("step", reason)
            self._fall_back("after", reason)

    @property
    def held(self) -> int:
        """Graphs that are kept."""
        return len(self._graphs)

    def __call__(self, x: Tensor, pages: Pages, places: Tensor) -> Tensor:
        """One step of the lanes at `places`; see `RunByIndex`. The output is the caller's own."""

        def step(x: Tensor, places: Tensor) -> Signal:
            return by_index(self.model, x, pages, places)

        with torch.inference_mode():
            # While it warms up, the spare lane steps.
            y = self._run("step", pages.place, step, (x, places), (x, pages.nobody(places)))
            return step(x, places) if y is None else y  # type: ignore[return-value]

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        """As `Model.after`."""
        if self.model.spec.output.kind != "codes":
            return self.model.after(y, codebooks)
        if codebooks is not None:
            self.model.check_codebooks(codebooks)
        with torch.inference_mode():
            codes = self._run(
                "after", codebooks, lambda y: self.model.after(y, codebooks), (y,), (y,)
            )
            return self.model.after(y, codebooks) if codes is None else codes

    def forget(self) -> None:
        """Drops all graphs and their memory: the lanes' memory is given back."""
        self._drop(0)

    def _run(
        self,
        kind: str,
        place: Hashable,
        call: Callable[..., Signal],
        inputs: tuple[Tensor, ...],
        harmless: tuple[Tensor, ...],
    ) -> Signal | None:
        """The output of `call` on `inputs`, or None where there can be no graph.

        harmless  Inputs on which the call changes nothing that counts.
        """
        if kind in self._pauses:
            self._pauses[kind] -= 1
            if self._pauses[kind]:
                return None
            del self._pauses[kind], self.reasons[kind]
        if kind in self.reasons:
            return None
        key = (kind, place, *((x.shape, x.dtype) for x in inputs))
        graph = self._graphs.get(key)
        if graph is None:
            self._drop(MAX_GRAPHS - 1)
            try:
                static = tuple(x.clone() for x in harmless)
                graph = _Captured(static, self._capture(lambda: call(*static)))
            except RuntimeError as error:  # what torch raises for whatever cannot be captured
                reason = f"the capture failed: {str(error).partition(chr(10))[0]}"
                if _found_no_memory(error):
                    self._pause(kind, reason)
                else:
                    self._fall_back(kind, reason)
                return None
            self._graphs[key] = graph
        self._graphs.move_to_end(key)
        for static_input, x in zip(graph.inputs, inputs, strict=True):
            static_input.copy_(x)
        graph.captured.replay()
        return clone(graph.captured.output)

    def _drop(self, keep: int) -> None:
        if len(self._graphs) > keep and self.model.like.is_cuda:
            torch.cuda.synchronize(self.model.like.device)  # a replay may still be on its way
        while len(self._graphs) > keep:
            self._graphs.popitem(last=False)

    def _pause(self, kind: str, reason: str) -> None:
        """Gives the memory of all graphs back, and puts the next try off; the last one is final."""
        self._drop(0)
        self._tries[kind] += 1
        if self._tries[kind] == MAX_TRIES:
            self._fall_back(kind, f"{reason}, {MAX_TRIES} times")
            return
        self._pauses[kind] = RETRY_AFTER_RUNS
        self.reasons[kind] = reason
        log.warning(
            "%s: no CUDA graph for its %s for %d runs: %s",
            *(self.model.spec.name, kind, RETRY_AFTER_RUNS, reason),
        )

    def _fall_back(self, kind: str, reason: str) -> None:
        self.reasons[kind] = reason
        for key in [key for key in self._graphs if isinstance(key, tuple) and key[0] == kind]:
            del self._graphs[key]
        log.warning("%s: no CUDA graph for its %s: %s", self.model.spec.name, kind, reason)


def _found_no_memory(error: BaseException | None) -> bool:
    """Also where ending the capture then failed as well."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


class Recorder:
    """Captures calls on a CUDA device as graphs, which share memory: one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def __call__(self, call: Callable[[], Signal]) -> Replay:
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # A stream of its own, as the capture will have: on the usual one it is not allowed.
            usual = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(usual)
            with torch.cuda.stream(side):
                for _ in range(WARMUP_RUNS):
                    call()
            usual.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what a capture must not do, such as loading a model.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = call()
        return Replay(graph.replay, output)


def cannot_capture(device: torch.device) -> str:
    """Why there can be no graph on `device`; "" where there can."""
    if device.type != "cuda":
        return f"the model is on {device}"
    return "" if torch.version.cuda else "this torch is not built for CUDA"
