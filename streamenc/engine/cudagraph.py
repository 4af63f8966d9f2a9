"""The whole step under a CUDA graph: one launch instead of hundreds.

A graph replays the same kernels on the same addresses. So there is one for each shape of the input
and each place of the lanes: for each bucket of them, whichever lanes a step takes. Inputs are
copied to where the graph reads them, and outputs from where it writes them before the next replay
overwrites them. What is committed is committed within the graph. Nothing in it waits for the host.

A capture takes some tenths of a second, and the first ones of a process seconds. So an engine makes
graphs when it is told to be warm, not while others wait for their hops: what has none then runs
operator by operator, and the reason is told.

All graphs of a thread on a device are of one generation. They share memory, as one replays at a
time, and a stream, on which libraries keep memory whose address the graphs have. In some versions
of torch the end of any graph gives that memory back, to all others' harm; so none ends before the
whole generation is retired, once the device has done what it had to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from streamenc.engine.pages import Pages, by_index
from streamenc.models.model import Model
from streamenc.models.signal import Signal, clone, first_books

log = logging.getLogger(__name__)

# Graphs that nobody replays any more; with more, the next capture retires the generation first.
MAX_UNUSED = 16
# Runs before the capture, in which libraries choose their kernels, make plans and take memory.
WARMUP_RUNS = 3


class Replay(NamedTuple):
    """replay: computes anew, from the inputs' memory to that of `output`."""

    replay: Callable[[], None]
    output: Signal


# Runs the given call until it is warm, and makes it replayable.
Capture: TypeAlias = Callable[[Callable[[], Signal]], Replay]
# "step" or "after", and for what: shapes and places.
_Key: TypeAlias = tuple[str, *tuple[Hashable, ...]]


@dataclass(eq=False, slots=True)
class _Graph:
    """inputs  Where it reads them; what lies there changes nothing that counts, before a replay.

    captured   None where its generation was retired.
    codebooks  Of the quantiser's: how many it gives.
    """

    kind: str
    call: Callable[..., Signal]
    inputs: tuple[Tensor, ...]
    captured: Replay | None = None
    codebooks: int = 0


class GraphedStep:
    """What `IndexedLanes` runs, and `after` for what it gives, by graphs.

    Where a capture fails, it says so in the log and computes without graphs from then on; where it
    only finds no memory, what it was for does, until it is warmed again.

    capture    What makes a call replayable, or the generation that its graphs are of; for tests.
               None captures on the model's device.
    on_demand  Whether a graph that is missing is made at once. Else `warm` makes them.
    reasons    Why "step" or "after" runs without graphs now; empty where both run with them.
    """

    def __init__(
        self,
        model: Model,
        capture: Capture | Generation | None = None,
        *,
        on_demand: bool = True,
    ) -> None:
        self.model = model
        self.on_demand = on_demand
        self.reasons: dict[str, str] = {}
        self._graphs: dict[_Key, _Graph] = {}
        self._no_memory: set[_Key] = set()  # for a capture
        self._never: set[str] = set()  # kinds that cannot be captured
        reason = model.uncapturable
        if capture is None:
            capture = generation_of(model.like.device)
            reason = reason or cannot_capture(model.like.device)
        self._generation = capture if isinstance(capture, Generation) else Generation(capture)
        self._generation.members.add(self)
        if reason:
            self._fall_back("step", reason)
            self._fall_back("after", reason)

    @property
    def held(self) -> int:
        """Graphs that are kept."""
        return sum(graph.captured is not None for graph in self._graphs.values())

    def __call__(self, x: Tensor, pages: Pages, places: Tensor) -> Tensor:
        """One step of the lanes at `places`; see `RunByIndex`. The output is the caller's own."""
        with torch.inference_mode():
            graph = None
            if "step" not in self._never:
                key = self._step_key(x, pages)
                graph = self._usable("step", key)
                if graph is None and self._may_make("step", key, f"{len(x)} lanes"):
                    graph = self._make_step(x, pages)
            if graph is None:
                return by_index(self.model, x, pages, places)
            y = _replayed(graph, (x, places))
            assert isinstance(y, Tensor)
            return y.clone()

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        """As `Model.after`: by the first codebooks of a graph that has as many or more."""
        if codebooks is not None:
            self.model.check_codebooks(codebooks)
        if self.model.spec.output.kind != "codes" or "after" in self._never:
            return self.model.after(y, codebooks)
        with torch.inference_mode():
            count = self._count(codebooks)
            key = self._after_key(y)
            graph = self._usable("after", key)
            what = f"{len(y)} lanes"
            if graph is not None and graph.codebooks < count:
                graph, what = None, f"{count} codebooks of {what}"
            if graph is None and self._may_make("after", key, what):
                graph = self._make_after(y, count)
            if graph is None:
                return self.model.after(y, codebooks)
            return clone(first_books(_replayed(graph, (y,)), codebooks))

    def warm(self, x: Tensor, pages: Pages, codebooks: int | None = None) -> None:
        """Makes the graphs for inputs of the shape of `x`, (batch, channels, hop, ...); where there
        can be none, runs the kernels once, which then have their plans and their memory.

        codebooks  The most that any stream asks for; None for all.
        """
        with torch.inference_mode():
            count = self._count(codebooks)
            step = self._usable("step", self._step_key(x, pages)) or self._make_step(x, pages)
            if self._step_key(x, pages) in self._no_memory:
                self._generation.restore()
                return
            if step is None:
                y = by_index(self.model, x, pages, pages.places((), len(x)))
            else:
                assert step.captured is not None and isinstance(step.captured.output, Tensor)
                y = step.captured.output
            if self.model.spec.output.kind != "codes":
                self.model.after(y, codebooks)
                return
            after = self._usable("after", self._after_key(y))
            if after is None or after.codebooks < count:
                after = self._make_after(y, count)
            if after is None:
                self.model.after(y, codebooks)
            # Graphs that were retired with their generation, of other models as well.
            self._generation.restore()

    def forget(self) -> None:
        """Replays none of its graphs any more: the lanes' memory is given back."""
        self._graphs.clear()
        self._no_memory.clear()
        self._generation.retire_if_unused()

    def let_go(self) -> None:
        """Its generation is retired: what it knows how to capture anew stays."""
        for graph in self._graphs.values():
            graph.captured = None

    def restore(self) -> None:
        """Captures anew what was let go."""
        for key, graph in list(self._graphs.items()):
            if graph.captured is None and graph.kind not in self._never:
                self._captured(key, graph)

    @staticmethod
    def _step_key(x: Tensor, pages: Pages) -> _Key:
        return "step", pages.place, x.shape, x.dtype

    @staticmethod
    def _after_key(y: Tensor) -> _Key:
        return "after", y.shape, y.dtype

    def _usable(self, kind: str, key: _Key) -> _Graph | None:
        graph = self._graphs.get(key)
        return None if graph is None or graph.captured is None or kind in self._never else graph

    def _may_make(self, kind: str, key: _Key, what: str) -> bool:
        if kind in self._never or key in self._no_memory:
            return False
        if not self.on_demand and kind not in self.reasons:
            reason = f"none was made for {what}; call Engine.warm before streams are live"
            self._told(kind, reason)
        return self.on_demand

    def _make_step(self, x: Tensor, pages: Pages) -> _Graph | None:
        model = self.model  # a graph does not keep this object alive

        def step(x: Tensor, places: Tensor) -> Signal:
            return by_index(model, x, pages, places)

        if "step" in self._never:
            return None
        # While it warms up, the spare lane steps: no stream's is written.
        inputs = x.clone(), pages.places((), len(x))
        return self._captured(self._step_key(x, pages), _Graph("step", step, inputs))

    def _make_after(self, y: Tensor, codebooks: int) -> _Graph | None:
        if "after" in self._never:
            return None
        model, limit = self.model, None if codebooks == self._count(None) else codebooks
        graph = _Graph("after", lambda y: model.after(y, limit), (y.clone(),))
        graph.codebooks = codebooks
        return self._captured(self._after_key(y), graph)

    def _count(self, codebooks: int | None) -> int:
        return codebooks or self.model.spec.output.channels

    def _captured(self, key: _Key, graph: _Graph) -> _Graph | None:
        """The graph, kept; or None where its capture failed, which is told."""
        self._graphs.pop(key, None)
        try:
            captured = self._generation.capture(lambda: graph.call(*graph.inputs))
        except RuntimeError as error:  # what torch raises for whatever cannot be captured
            reason = f"the capture failed: {str(error).partition(chr(10))[0]}"
            if _found_no_memory(error):
                self._no_memory.add(key)
                self._told(graph.kind, reason)
            else:
                self._fall_back(graph.kind, reason)
            self._generation.retire_if_unused()
            return None
        graph.captured = captured
        self._graphs[key] = graph
        self._no_memory.discard(key)
        if not any(kind == graph.kind for kind, *_ in self._no_memory):
            self.reasons.pop(graph.kind, None)
        return graph

    def _fall_back(self, kind: str, reason: str) -> None:
        self._never.add(kind)
        self._graphs = {key: graph for key, graph in self._graphs.items() if graph.kind != kind}
        self._told(kind, reason)

    def _told(self, kind: str, reason: str) -> None:
        if self.reasons.get(kind) != reason:
            self.reasons[kind] = reason
            log.warning("%s: no CUDA graph for its %s: %s", self.model.spec.name, kind, reason)


def _replayed(graph: _Graph, inputs: tuple[Tensor, ...]) -> Signal:
    """The output, where the graph writes it."""
    assert graph.captured is not None
    for static_input, x in zip(graph.inputs, inputs, strict=True):
        static_input.copy_(x)
    graph.captured.replay()
    return graph.captured.output


def _found_no_memory(error: BaseException | None) -> bool:
    """Also where ending the capture then failed as well."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


class Generation:
    """All graphs of one thread on one device, of any models; see the module."""

    def __init__(self, capture: Capture) -> None:
        self.members: WeakSet[GraphedStep] = WeakSet()
        self._capture = capture
        self._made = 0  # since the last one was retired, also those that failed

    def capture(self, call: Callable[[], Signal]) -> Replay:
        """A new graph. Raises RuntimeError."""
        used = sum(member.held for member in self.members)
        if self._made - used > MAX_UNUSED or (self._made and not used):
            self.retire()
        self._made += 1
        return self._capture(call)

    def retire(self) -> None:
        """Ends all graphs, once the device is done with them."""
        recorder = self._capture if isinstance(self._capture, Recorder) else None
        if recorder is not None:
            torch.cuda.synchronize(recorder.device)
        for member in self.members:
            member.let_go()
        if recorder is not None:
            recorder.forget()
        self._made = 0

    def retire_if_unused(self) -> None:
        """`retire`, where nobody has a graph any more."""
        if self._made and not any(member.held for member in self.members):
            self.retire()

    def restore(self) -> None:
        """Captures what was retired, and its owners still want."""
        for member in list(self.members):
            member.restore()


_generations = threading.local()


def generation_of(device: torch.device) -> Generation:
    """The calling thread's on a device."""
    known: dict[torch.device, Generation] = _generations.__dict__.setdefault("known", {})
    if device not in known:
        known[device] = Generation(Recorder(device))
    return known[device]


class Recorder:
    """Captures calls on a CUDA device as graphs, for one thread.

    Calls warm up on the stream that they are captured on, which is the same for all: what libraries
    keep for a stream, tens of MB each, is there once, and not in the graphs' memory. Whatever
    fails, the thread goes on with the stream that it had: what ran on another one would not wait
    for it, and be read before it is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None
        self._pool: Any = None
        self._graphs: list[Any] = []  # none ends before the others, whoever has one still

    def __call__(self, call: Callable[[], Signal]) -> Replay:
        """Raises RuntimeError for what cannot be captured, OutOfMemoryError without memory."""
        with torch.cuda.device(self.device):
            usual = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            side = self._stream
            graph = torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            try:
                side.wait_stream(usual)
                with torch.cuda.stream(side):
                    for _ in range(WARMUP_RUNS):
                        call()
                # Other threads may go on with what a capture must not do, as loading a model.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
                ):
                    output = call()
            except BaseException:  # passed on; what cannot be used again is left
                if _is_capturing(side):  # and memory is of the stream that it was made on
                    self._stream = self._pool = None
                raise
            finally:
                # Where ending a capture fails, torch leaves its stream the current one.
                torch.cuda.set_stream(usual)
            usual.wait_stream(side)
        return Replay(graph.replay, output)

    def forget(self) -> None:
        """Ends all of its graphs, and their memory with the last one: the next have another."""
        self._graphs.clear()
        self._pool = None


def _is_capturing(stream: Any) -> bool:
    """Whether a failed capture has left a stream that can do nothing else."""
    try:
        with torch.cuda.stream(stream):
            return torch.cuda.is_current_stream_capturing()
    except RuntimeError:
        return True


def cannot_capture(device: torch.device) -> str:
    """Why there can be no graph on `device`; "" where there can."""
    if device.type != "cuda":
        return f"the model is on {device}"
    return "" if torch.version.cuda else "this torch is not built for CUDA"
