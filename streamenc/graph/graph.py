"""Graph: sources, transforms, merges and sinks, joined by bounded channels, run as one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from graphlib import CycleError, TopologicalSorter

import anyio
from anyio.lowlevel import checkpoint

from streamenc.errors import FitError, NodeError, UsageError
from streamenc.graph.channel import DEFAULT_CAPACITY
from streamenc.graph.clock import Clock, MonotonicClock
from streamenc.graph.edge import Policy
from streamenc.graph.interrupt import on_interrupt
from streamenc.graph.node import AsyncTransform, Sink, Source, Transform
from streamenc.graph.report import GraphReport, Outcome
from streamenc.graph.running import (
    AsyncTransformVertex,
    MergeVertex,
    SinkVertex,
    SourceVertex,
    TransformVertex,
    Vertex,
)
from streamenc.graph.worker import WorkerAbandoned

# Between two attempts to leave behind what does not end, once the hard stop has come.
ABANDON_AGAIN_SECONDS = 1.0


class Graph:
    """A graph of nodes. Build it, then run it once.

        graph = Graph(deadline_ms=200)
        mic = graph.source("mic", Microphone())
        codes = graph.transform("encode", Encode(...), mic)
        graph.sink("publish", ZmqSink(...), codes, policy="drop_oldest")
        graph.sink("record", RecordingSink(...), codes)
        print(graph.run_blocking())

    Each method returns the node's name, which later ones take as their input; a name may be used
    before its node is there. Several consumers of one node make a tee: each gets the same frames
    over a channel of its own. `capacity` (frames) and `policy` are those of the edge in front of
    the node, see Channel; dropping policies only behind live sources.

    deadline_ms        Sinks count the frames that took longer from end to end.
    drain_seconds      Time for what is on its way after `stop`; then it is cancelled.
    hard_stop_seconds  After this time from `stop`, threads that do not return are left behind.
    clock              The real one unless given; a VirtualClock for tests.

    Raises UsageError where a number is out of range.
    """

    def __init__(
        self,
        *,
        deadline_ms: float | None = None,
        drain_seconds: float = 5.0,
        hard_stop_seconds: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        if not 0 <= drain_seconds <= hard_stop_seconds:
            raise UsageError(
                f"got drain_seconds={drain_seconds}, hard_stop_seconds={hard_stop_seconds}; "
                "wanted 0 <= drain_seconds <= hard_stop_seconds"
            )
        if deadline_ms is not None and not 0 < deadline_ms < math.inf:
            raise UsageError(
                f"got deadline_ms={deadline_ms}; wanted a finite number above 0, or None"
            )
        self.deadline_ms = deadline_ms
        self.drain_seconds = drain_seconds
        self.hard_stop_seconds = hard_stop_seconds
        self.clock: Clock = clock or MonotonicClock()
        self._vertices: dict[str, Vertex] = {}
        self._sources: list[SourceVertex] = []
        self._outcome: Outcome | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._stops = 0
        self._scope: anyio.CancelScope  # of the task group, while it runs
        self._closing: set[anyio.CancelScope] = set()
        self._hard_stop: asyncio.TimerHandle | None = None
        self._running = 0
        self._cancelled = False
        self._failure: Exception | None = None
        self._abandoned: list[str] = []
        self._start_ns: int | None = None
        self._end_ns: int | None = None

    def source(self, name: str, node: Source) -> str:
        """Adds a source. Raises FitError where the name is taken or the node is no source."""
        self._check(name, node, Source)
        vertex = SourceVertex(name, self.clock, node)
        self._sources.append(vertex)
        return self._add(vertex)

    def transform(
        self,
        name: str,
        node: Transform | AsyncTransform,
        after: str,
        *,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
    ) -> str:
        """Adds a transform of what `after` gives. Raises FitError as `source` does."""
        self._check(name, node, (Transform, AsyncTransform))
        if isinstance(node, Transform):
            return self._add(TransformVertex(name, self.clock, node, after, capacity, policy))
        return self._add(AsyncTransformVertex(name, self.clock, node, after, capacity, policy))

    def merge(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        max_wait_ms: float = 500.0,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
    ) -> str:
        """Adds a merge of several streams into one "mux", in order of presentation time.

        `Frame.track` counts the inputs from 0. An input from which nothing comes for `max_wait_ms`,
        and as long as one of its codes or features lasts, while others wait is not waited for until
        it delivers again; nothing is lost by that, but its next frames may come out later than in
        order, which is logged. Nor is it waited for where another input from the same source, as
        the tracks of a film, has filled its channel: that holds the source up, so `capacity` has to
        hold what one is ahead of the other.

        Raises FitError where the name is taken or there are no inputs, UsageError where
        `max_wait_ms` is negative.
        """
        self._check(name, None, type(None))
        if isinstance(inputs, str) or not inputs:
            raise FitError(f"merge {name!r} got inputs {inputs!r}; give it a list of names")
        if not 0 <= max_wait_ms < math.inf:
            raise UsageError(
                f"merge {name!r} got max_wait_ms={max_wait_ms}; wanted a finite number, 0 or more"
            )
        max_wait_ns = round(max_wait_ms * 1e6)
        return self._add(MergeVertex(name, self.clock, inputs, max_wait_ns, capacity, policy))

    def sink(
        self,
        name: str,
        node: Sink,
        after: str,
        *,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
    ) -> str:
        """Adds a sink for what `after` gives. Raises FitError as `source` does."""
        self._check(name, node, Sink)
        deadline_ns = None if self.deadline_ms is None else round(self.deadline_ms * 1e6)
        return self._add(SinkVertex(name, self.clock, node, after, deadline_ns, capacity, policy))

    async def run(self, *, handle_signals: bool = False) -> GraphReport:
        """Opens all nodes, runs until the sources end or `stop`, and closes all nodes, always.

        With `handle_signals`, SIGINT and SIGTERM call `stop` meanwhile (in the main thread only).

        Raises FitError where the nodes do not fit together, NodeError where one fails (then the
        others are cancelled and closed, so sinks complete what they have), UsageError where the
        graph ran before.
        """
        if self._outcome is not None:
            raise UsageError("this graph ran already; build another, with fresh nodes")
        order = self._sorted()
        self._outcome = "running"
        try:
            with on_interrupt(self.stop) if handle_signals else nullcontext():
                async with anyio.create_task_group() as group:
                    self._scope = group.cancel_scope
                    self._loop = asyncio.get_running_loop()
                    group.start_soon(self._supervise)
                    if self._stops:
                        self._cancel()
                    if await self._open(order):
                        self._start_ns = self.clock.now_ns()
                        self._running = len(order)
                        for vertex in order:
                            group.start_soon(self._run, vertex, name=vertex.name)
        except BaseException:  # noted, and passed on
            self._cancelled = True
            raise
        finally:
            self._finish()
        if self._failure is not None:
            raise self._failure
        return self.report()

    def run_blocking(self, *, handle_signals: bool = True) -> GraphReport:
        """`run` in an event loop of its own, for programs without one."""
        return anyio.run(partial(self.run, handle_signals=handle_signals))

    def stop(self) -> None:
        """Asks the sources to end and lets the rest drain; from any thread, also before `run`.

        A second call cancels at once what has not drained, and so does the first one while nodes
        are still being opened; a third one leaves threads behind without waiting for them.
        """
        if self._loop is None:
            self._stops += 1
        else:
            self._loop.call_soon_threadsafe(self._escalate)

    def report(self) -> GraphReport:
        """The state now, while running or after; from the event loop's thread."""
        now_ns = self._end_ns if self._end_ns is not None else self.clock.now_ns()
        vertices = list(self._vertices.values())
        return GraphReport(
            outcome=self._outcome or "running",
            wall_seconds=0.0 if self._start_ns is None else (now_ns - self._start_ns) / 1e9,
            deadline_ms=self.deadline_ms,
            nodes=tuple(vertex.report() for vertex in vertices),
            edges=tuple(edge.statistics() for vertex in vertices for edge in vertex.inputs),
            abandoned=tuple(self._abandoned),
        )

    def _check(self, name: str, node: object, kinds: type | tuple[type, ...]) -> None:
        if name in self._vertices:
            raise FitError(f"the graph already has a node named {name!r}; names are unique")
        if not isinstance(node, kinds):
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            names = " or ".join(kind.__name__ for kind in wanted)
            raise FitError(f"node {name!r} is a {type(node).__name__}; wanted a {names}")
        for other in self._vertices.values():
            if node is not None and getattr(other, "node", None) is node:
                raise FitError(f"nodes {other.name!r} and {name!r} are one object; make two")

    def _add(self, vertex: Vertex) -> str:
        self._vertices[vertex.name] = vertex
        return vertex.name

    def _sorted(self) -> list[Vertex]:
        """The vertices, each after its inputs. Raises FitError where they make no graph."""
        for kind in ("source", "sink"):
            if not any(vertex.kind == kind for vertex in self._vertices.values()):
                raise FitError(f"the graph has no {kind}")
        consumed = set()
        for vertex in self._vertices.values():
            for name in vertex.upstream:
                if name not in self._vertices:
                    known = ", ".join(self._vertices)
                    raise FitError(f"{name!r} -> {vertex.name!r}: no node {name!r} among {known}")
                if self._vertices[name].kind == "sink":
                    raise FitError(f"{name!r} -> {vertex.name!r}: a sink gives no frames")
                consumed.add(name)
        for vertex in self._vertices.values():
            if vertex.kind != "sink" and vertex.name not in consumed:
                raise FitError(f"nothing takes the frames of {vertex.name!r}; add a sink after it")
        try:
            names = TopologicalSorter({v.name: v.upstream for v in self._vertices.values()})
            return [self._vertices[name] for name in names.static_order()]
        except CycleError as error:
            raise FitError(f"the graph has a cycle: {' -> '.join(error.args[1])}") from None

    async def _open(self, order: Sequence[Vertex]) -> bool:
        """Opens all nodes; where one fails, closes all again and returns False."""
        opened: list[Vertex] = []
        try:
            for vertex in order:
                opened.append(vertex)
                producers = [self._vertices[name] for name in vertex.upstream]
                vertex.live = all(producer.live for producer in producers)
                vertex.sources = frozenset({vertex.name} if not producers else ()).union(
                    *(producer.sources for producer in producers)
                )
                if isinstance(vertex, MergeVertex):
                    vertex.source_sets = [producer.sources for producer in producers]
                for producer in producers:
                    vertex.connect(producer)
                vertex.info = await vertex.open([p.info for p in producers if p.info])
            await checkpoint()  # a stop up to here still cancels
        except BaseException as error:
            if isinstance(error, Exception) and not self._was_abandoned(opened[-1], error):
                self._failure = _opening_error(opened[-1], error)
            for vertex in reversed(opened):
                await self._close(vertex)
            if not isinstance(error, Exception):
                raise
            self._scope.cancel()
            return False
        return True

    async def _run(self, vertex: Vertex) -> None:
        try:
            if await self._guard(vertex, vertex.run):
                for channel in vertex.outputs:
                    channel.close_send()
        finally:
            await self._close(vertex)
            self._running -= 1
            if not self._running:
                self._scope.cancel()  # the supervisor is all that is left

    async def _guard(self, vertex: Vertex, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether `work` succeeded; where it failed, the graph fails with it."""
        try:
            await work()
            return True
        except Exception as error:
            if not self._was_abandoned(vertex, error):
                self._fail(vertex, error)
        except asyncio.CancelledError as error:
            # A cancelled future of the node's own is its error; ours must pass.
            task = asyncio.current_task()
            if self._scope.cancel_called or (task is not None and task.cancelling()):
                raise
            self._fail(vertex, error)
        return False

    async def _close(self, vertex: Vertex) -> None:
        with anyio.CancelScope(shield=True) as scope:
            self._closing.add(scope)
            await self._guard(vertex, vertex.close)
        self._closing.discard(scope)
        if scope.cancelled_caught:
            self._note_abandoned(vertex)

    async def _supervise(self) -> None:
        """Sees to it that the graph ends, from whatever side the end comes."""
        try:
            await self._stopping.wait()
            for vertex in self._sources:
                try:
                    vertex.stop()
                except Exception as error:
                    self._fail(vertex, error)
            # Real time whatever the clock: it is threads and peers that make a drain late.
            await anyio.sleep(self.drain_seconds)
            self._cancel()
            await anyio.sleep_forever()
        finally:
            self._abandon_in(self.hard_stop_seconds - self.drain_seconds)

    def _escalate(self) -> None:
        self._stops += 1
        if self._stops > 2:
            self._abandon()
        elif self._stops == 2 or self._start_ns is None:
            self._cancel()
        else:
            self._stopping.set()

    def _cancel(self) -> None:
        self._cancelled = True
        self._scope.cancel()

    def _fail(self, vertex: Vertex, error: BaseException) -> None:
        if self._failure is None:
            self._failure = NodeError(vertex.name, error)
        self._scope.cancel()

    def _abandon_in(self, seconds: float) -> None:
        if self._hard_stop is not None:
            self._hard_stop.cancel()
        self._hard_stop = asyncio.get_running_loop().call_later(seconds, self._abandon)

    def _abandon(self) -> None:
        for vertex in self._vertices.values():
            if vertex.worker is not None and vertex.worker.abandon():
                self._note_abandoned(vertex)
        for scope in self._closing:
            scope.cancel()
        # What starts to close only now gets a moment, too.
        self._abandon_in(ABANDON_AGAIN_SECONDS)

    def _note_abandoned(self, vertex: Vertex) -> None:
        if vertex.name not in self._abandoned:
            self._abandoned.append(vertex.name)

    def _was_abandoned(self, vertex: Vertex, error: Exception) -> bool:
        return isinstance(error, WorkerAbandoned) and vertex.name in self._abandoned

    def _finish(self) -> None:
        if self._hard_stop is not None:
            self._hard_stop.cancel()
        self._loop = None
        self._end_ns = self.clock.now_ns()
        if self._failure is not None:
            self._outcome = "failed"
        elif self._cancelled:
            self._outcome = "cancelled"
        else:
            self._outcome = "stopped" if self._stops else "ended"


def _opening_error(vertex: Vertex, error: Exception) -> Exception:
    """FitError stays one, anything else becomes a NodeError; both name the edge."""
    edge = f"{vertex.name!r}"
    if vertex.upstream:
        edge = f"{', '.join(map(repr, vertex.upstream))} -> {edge}"
    if isinstance(error, FitError):
        explained: Exception = FitError(f"{edge}: {error}")
        explained.__cause__ = error
    else:
        explained = NodeError(vertex.name, error)
        explained.args = (f"{edge}: cannot open: {type(error).__name__}: {error}",)
    return explained
