"""Graph: sources, transforms, merges and sinks, joined by bounded channels, run as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from graphlib import CycleError, TopologicalSorter

import anyio
from anyio.lowlevel import checkpoint

from streamenc.errors import FitError, NodeError, UsageError
from streamenc.graph.clock import Clock, MonotonicClock
from streamenc.graph.edge import DEFAULT_CAPACITY, Edge, Policy, check_max_age, check_ms
from streamenc.graph.interrupt import on_interrupt
from streamenc.graph.node import AsyncTransform, Sink, Source, Transform
from streamenc.graph.report import GraphReport, Outcome
from streamenc.graph.running import (
    AsyncTransformTask,
    MergeTask,
    NobodyListens,
    NodeTask,
    SinkTask,
    SourceTask,
    TransformTask,
)
from streamenc.graph.worker import WorkerAbandoned

# Between two attempts to leave behind what does not end, once the hard stop has come.
ABANDON_AGAIN_SECONDS = 1.0
CANCELLED = "the graph was cancelled"


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
    over a channel of its own. `capacity` (frames), `policy` and `max_age_ms` are those of the edge
    in front of the node, see Channel; what may drop frames is for edges behind live sources, or
    behind files that are paced.

    Args:
        deadline_ms: Sinks count the frames that took longer from end to end.
        max_age_ms: A bound for whole paths: each edge behind live sources gives up frames that
            arrived longer ago, unless it has a `max_age_ms` of its own. None for no bound.
        drain_seconds: Time for what is on its way after `stop`; then it is cancelled. Where a node
            failed, what is on its way may take longer, as long as it moves at all in this time.
        hard_stop_seconds: After this time from `stop`, threads that do not return are left behind.
        clock: The real one unless given; a VirtualClock for tests.

    Raises:
        UsageError: Where a number is out of range.
    """

    def __init__(
        self,
        *,
        deadline_ms: float | None = None,
        max_age_ms: float | None = None,
        drain_seconds: float = 5.0,
        hard_stop_seconds: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        if not 0 <= drain_seconds <= hard_stop_seconds:
            raise UsageError(
                f"got drain_seconds={drain_seconds}, hard_stop_seconds={hard_stop_seconds}; "
                "wanted 0 <= drain_seconds <= hard_stop_seconds"
            )
        check_ms("the graph", "deadline_ms", deadline_ms)
        check_max_age("the graph", max_age_ms)
        self.deadline_ms = deadline_ms
        self.max_age_ms = max_age_ms
        self.drain_seconds = drain_seconds
        self.hard_stop_seconds = hard_stop_seconds
        self.clock: Clock = clock or MonotonicClock()
        self._tasks: dict[str, NodeTask] = {}
        self._sources: list[SourceTask] = []
        self._outcome: Outcome | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._failing = asyncio.Event()
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
        task = SourceTask(name, self.clock, node)
        self._sources.append(task)
        return self._add(task)

    def transform(
        self,
        name: str,
        node: Transform | AsyncTransform,
        after: str,
        *,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
        max_age_ms: float | None = None,
        if_live: bool = False,
        needs_live: str = "",
    ) -> str:
        """Adds a transform of what `after` gives. Raises FitError as `source` does.

        Of some sources only opening tells whether they are live: with `if_live`, `policy` and
        `capacity` are for those that are; `needs_live` is the error for those that are not.
        """
        self._check(name, node, (Transform, AsyncTransform))
        edge = Edge(capacity, policy, max_age_ms, if_live, needs_live)
        if isinstance(node, Transform):
            return self._add(TransformTask(name, self.clock, node, after, edge))
        return self._add(AsyncTransformTask(name, self.clock, node, after, edge))

    def merge(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        max_wait_ms: float = 500.0,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
        max_age_ms: float | None = None,
    ) -> str:
        """Adds a merge of several streams into one "mux", in order of presentation time.

        `Frame.track` counts the inputs from 0. An input from which nothing comes for `max_wait_ms`,
        and as long as one of its codes or features lasts, while others wait is not waited for until
        it delivers again; nothing is lost by that, but its next frames may come out later than in
        order, which is logged. Nor is it waited for where another input from the same source, as
        the tracks of a film, has filled its channel: that holds the source up, so `capacity` has to
        hold what one is ahead of the other.

        Raises:
            FitError: Where the name is taken or there are no inputs.
            UsageError: Where `max_wait_ms` is negative.
        """
        self._check(name, None, type(None))
        if isinstance(inputs, str) or not inputs:
            raise FitError(f"merge {name!r} got inputs {inputs!r}; give it a list of names")
        check_ms(f"merge {name!r}", "max_wait_ms", max_wait_ms, low=0)
        max_wait_ns = round(max_wait_ms * 1e6)
        edge = Edge(capacity, policy, max_age_ms)
        return self._add(MergeTask(name, self.clock, inputs, max_wait_ns, edge))

    def sink(
        self,
        name: str,
        node: Sink,
        after: str,
        *,
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
        max_age_ms: float | None = None,
    ) -> str:
        """Adds a sink for what `after` gives. Raises FitError as `source` does."""
        self._check(name, node, Sink)
        deadline_ns = None if self.deadline_ms is None else round(self.deadline_ms * 1e6)
        edge = Edge(capacity, policy, max_age_ms)
        return self._add(SinkTask(name, self.clock, node, after, deadline_ns, edge))

    async def run(self, *, handle_signals: bool = False) -> GraphReport:
        """Opens all nodes, runs until the sources end or `stop`, and closes all nodes, always.

        With `handle_signals`, SIGINT and SIGTERM call `stop` meanwhile (in the main thread only).

        Raises:
            FitError: Where the nodes do not fit together.
            NodeError: Where one fails, once the sources were stopped, what was heard up to then has
                passed through the other nodes, and each sink was told that its stream ended before
                its end (`Sink.broken`). `report` still has the report.
            UsageError: Where the graph ran before.
        """
        if self._outcome is not None:
            raise UsageError("this graph ran already; build another, with fresh nodes")
        order = self._sorted()
        self._outcome = "running"
        try:
            async with on_interrupt(self.stop) if handle_signals else nullcontext():
                async with anyio.create_task_group() as group:
                    self._scope = group.cancel_scope
                    self._loop = asyncio.get_running_loop()
                    group.start_soon(self._supervise)
                    if self._stops:
                        self._cancel()
                    if await self._open(order):
                        self._start_ns = self.clock.now_ns()
                        self._running = len(order)
                        for task in order:
                            group.start_soon(self._run, task, name=task.name)
        except BaseException:  # noted, and passed on
            self._cancelled = True
            raise
        finally:
            self._finish()
        if self._failure is not None:
            raise self._failure
        return self.report()

    def run_blocking(self, *, handle_signals: bool = True) -> GraphReport:
        """`run` in an event loop of its own, for programs without one.

        Raises:
            UsageError: In an event loop that runs already, as in a notebook.
        """
        check_no_event_loop()
        return anyio.run(partial(self.run, handle_signals=handle_signals))

    def stop(self) -> None:
        """Asks the sources to end and lets the rest drain; from any thread, also before `run`.

        A second call cancels at once what has not drained, and so does the first one while nodes
        are still being opened; a third one leaves threads behind without waiting for them.
        """
        loop = self._loop  # another thread may end the graph, and its loop, meanwhile
        if loop is None:
            self._stops += 1
        else:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._escalate)

    def report(self) -> GraphReport:
        """The state now, while running or after; from the event loop's thread."""
        now_ns = self._end_ns if self._end_ns is not None else self.clock.now_ns()
        tasks = list(self._tasks.values())
        return GraphReport(
            outcome=self._outcome or "running",
            wall_seconds=0.0 if self._start_ns is None else (now_ns - self._start_ns) / 1e9,
            deadline_ms=self.deadline_ms,
            nodes=tuple(task.report() for task in tasks),
            edges=tuple(edge.statistics() for task in tasks for edge in task.inputs),
            abandoned=tuple(self._abandoned),
        )

    def _check(self, name: str, node: object, kinds: type | tuple[type, ...]) -> None:
        if name in self._tasks:
            raise FitError(f"the graph already has a node named {name!r}; names are unique")
        if not isinstance(node, kinds):
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            names = " or ".join(kind.__name__ for kind in wanted)
            raise FitError(f"node {name!r} is a {type(node).__name__}; wanted a {names}")
        for other in self._tasks.values():
            if node is not None and getattr(other, "node", None) is node:
                raise FitError(f"nodes {other.name!r} and {name!r} are one object; make two")

    def _add(self, task: NodeTask) -> str:
        self._tasks[task.name] = task
        return task.name

    def _sorted(self) -> list[NodeTask]:
        """The tasks, each after its inputs. Raises FitError where they make no graph."""
        for kind in ("source", "sink"):
            if not any(task.kind == kind for task in self._tasks.values()):
                raise FitError(f"the graph has no {kind}")
        consumed = set()
        for task in self._tasks.values():
            for name in task.upstream:
                if name not in self._tasks:
                    known = ", ".join(self._tasks)
                    raise FitError(f"{name!r} -> {task.name!r}: no node {name!r} among {known}")
                if self._tasks[name].kind == "sink":
                    raise FitError(f"{name!r} -> {task.name!r}: a sink gives no frames")
                consumed.add(name)
        for task in self._tasks.values():
            if task.kind != "sink" and task.name not in consumed:
                raise FitError(f"nothing takes the frames of {task.name!r}; add a sink after it")
        try:
            names = TopologicalSorter({v.name: v.upstream for v in self._tasks.values()})
            return [self._tasks[name] for name in names.static_order()]
        except CycleError as error:
            raise FitError(f"the graph has a cycle: {' -> '.join(error.args[1])}") from None

    async def _open(self, order: Sequence[NodeTask]) -> bool:
        """Opens all nodes; where one fails, closes all again and returns False."""
        opened: list[NodeTask] = []
        try:
            for task in order:
                opened.append(task)
                producers = [self._tasks[name] for name in task.upstream]
                task.live = all(producer.live for producer in producers)
                for producer in producers:
                    task.connect(producer, self.max_age_ms)
                task.info = await task.open([p.info for p in producers if p.info])
            if self.max_age_ms is not None and not any(task.live for task in order):
                raise FitError(
                    f"max_age_ms={self.max_age_ms:g} is for live sources, and all of these would "
                    "wait: leave it out, or pace a file (realtime)"
                )
            await checkpoint()  # a stop up to here still cancels
        except BaseException as error:  # what is open is closed, and it is passed on
            if isinstance(error, Exception) and not self._was_abandoned(opened[-1], error):
                self._failure = _opening_error(opened[-1], error)
            for task in reversed(opened):
                task.broken = str(self._failure or CANCELLED)
                await self._close(task)
            if not isinstance(error, Exception):
                raise
            self._scope.cancel()
            return False
        return True

    async def _run(self, task: NodeTask) -> None:
        try:
            if await self._guard(task, task.run):
                task.broken = task.broken_off()
            task.end()
        except BaseException:  # noted, and passed on
            task.broken = str(self._failure or CANCELLED)
            raise
        finally:
            await self._close(task)
            self._running -= 1
            if not self._running:
                self._scope.cancel()  # the supervisor is all that is left

    async def _guard(self, task: NodeTask, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether `work` succeeded; where it failed, the graph fails with it."""
        try:
            await work()
            return True
        except NobodyListens:
            task.broken = str(self._failure)
        except Exception as error:
            if not self._was_abandoned(task, error):
                self._fail(task, error)
        except asyncio.CancelledError as error:
            # A cancelled future of the node's own is its error; ours must pass.
            current = asyncio.current_task()
            if self._scope.cancel_called or (current is not None and current.cancelling()):
                raise
            self._fail(task, error)
        return False

    async def _close(self, task: NodeTask) -> None:
        with anyio.CancelScope(shield=True) as scope:
            self._closing.add(scope)
            await self._guard(task, task.close)
        self._closing.discard(scope)
        if scope.cancelled_caught:
            self._note_abandoned(task)

    async def _supervise(self) -> None:
        """Sees to it that the graph ends, from whatever side the end comes."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._drain_after_failure)
                await self._stopping.wait()
                self._stop_sources()
                self._stop_waiting()
                # Real time whatever the clock: it is threads and peers that make a drain late.
                await anyio.sleep(self.drain_seconds)
                self._cancel()
        finally:
            self._abandon_in(self.hard_stop_seconds - self.drain_seconds)

    async def _drain_after_failure(self) -> None:
        """Ends what is left of a graph in which a node failed."""
        await self._failing.wait()
        self._stop_sources(str(self._failure))
        await anyio.sleep(self.drain_seconds)
        for source in self._sources:
            source.cut_off = True
        # Nobody asked for an end, so a slow encoder has its time; but what hangs hides no failure.
        tasks, moved = self._tasks.values(), -1
        while moved != (moved := sum(task.moved for task in tasks)):
            slowest_seconds = max(task.slowest_seconds for task in tasks)
            await anyio.sleep(max(self.drain_seconds, 2 * slowest_seconds))
        self._cancel()

    def _stop_sources(self, broken: str = "") -> None:
        for task in self._sources:
            try:
                task.stop(broken)
            except Exception as error:
                self._fail(task, error)

    def _stop_waiting(self) -> None:
        for task in self._tasks.values():
            if isinstance(task, AsyncTransformTask | SinkTask):
                try:
                    task.node.stop()
                except Exception as error:
                    self._fail(task, error)

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

    def _fail(self, task: NodeTask, error: BaseException) -> None:
        failure = NodeError(task.name, error)
        task.broken = task.broken or str(failure)
        if self._failure is None:
            self._failure = failure
            self._failing.set()
        else:
            self._failure.add_note(str(failure))

    def _abandon_in(self, seconds: float) -> None:
        if self._hard_stop is not None:
            self._hard_stop.cancel()
        self._hard_stop = asyncio.get_running_loop().call_later(seconds, self._abandon)

    def _abandon(self) -> None:
        for task in self._tasks.values():
            if task.worker is not None and task.worker.abandon():
                self._note_abandoned(task)
        for scope in self._closing:
            scope.cancel()
        # What starts to close only now gets a moment, too.
        self._abandon_in(ABANDON_AGAIN_SECONDS)

    def _note_abandoned(self, task: NodeTask) -> None:
        if task.name not in self._abandoned:
            self._abandoned.append(task.name)

    def _was_abandoned(self, task: NodeTask, error: Exception) -> bool:
        return isinstance(error, WorkerAbandoned) and task.name in self._abandoned

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


def _opening_error(task: NodeTask, error: Exception) -> Exception:
    """FitError stays one, anything else becomes a NodeError; both name the edge."""
    edge = f"{task.name!r}"
    if task.upstream:
        edge = f"{', '.join(map(repr, task.upstream))} -> {edge}"
    if isinstance(error, FitError):
        explained: Exception = FitError(f"{edge}: {error}")
        explained.__cause__ = error
    else:
        explained = NodeError(task.name, error)
        explained.args = (f"{edge}: cannot open: {type(error).__name__}: {error}",)
    return explained


def check_no_event_loop(
    name: str = "run_blocking",
    instead: str = "`await graph.run()` (of a Pipeline, `await pipeline.run()`)",
) -> None:
    """Raises UsageError in an event loop that runs already: what is called `name` starts one."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise UsageError(
            f"{name} starts an event loop, and one runs here already, as in a notebook or "
            f"a coroutine: write {instead}"
        )
