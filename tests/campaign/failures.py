"""Nodes of a graph that raise or hang, at each of their calls, and what comes of the graph."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import anyio

from streamenc.errors import NodeError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import BlockingSink, Transform
from tests.support.pipes import Collect, Ticks

FRAMES = 6
ERRORS: tuple[type[BaseException], ...] = (
    ValueError,
    MemoryError,
    TimeoutError,
    StopIteration,
    OSError,
)
CALLS = {
    "source": ("open", "frames", "aclose"),
    "transform": ("open", "push", "flush", "close"),
    "thread": ("open", "push", "flush", "close"),
    "sink": ("open", "write", "aclose"),
    "blocking sink": ("open", "write", "close"),
}
# A graph whose thread hangs is left behind after `hard_stop_seconds`.
DRAIN_SECONDS, HARD_STOP_SECONDS = 0.2, 0.5
ENDS_SECONDS = 4.0

Act = Callable[[str], None]


class _Source(Ticks):
    def __init__(self, act: Act) -> None:
        super().__init__(FRAMES, 2)
        self._act = act

    async def open(self) -> StreamInfo:
        self._act("open")
        return await super().open()

    async def frames(self) -> AsyncIterator[Frame]:
        async for frame in super().frames():
            if frame.seq == FRAMES // 2:
                self._act("frames")
            yield frame

    async def aclose(self) -> None:
        self._act("aclose")


class _Transform(Transform):
    def __init__(self, act: Act, blocking: bool) -> None:
        self._act, self.blocking = act, blocking

    def open(self, info: StreamInfo) -> StreamInfo:
        self._act("open")
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        if frame.seq == FRAMES // 2:
            self._act("push")
        return (frame,)

    def flush(self) -> Iterable[Frame]:
        self._act("flush")
        return ()

    def close(self) -> None:
        self._act("close")


class _Sink(Collect):
    def __init__(self, act: Act) -> None:
        super().__init__()
        self._act = act

    async def open(self, info: StreamInfo) -> None:
        self._act("open")

    async def write(self, frame: Frame) -> None:
        if frame.seq == FRAMES // 2:
            self._act("write")

    async def aclose(self) -> None:
        self._act("aclose")


class _BlockingSink(BlockingSink):
    def __init__(self, act: Act) -> None:
        self._act = act

    def open_blocking(self, info: StreamInfo) -> None:
        self._act("open")

    def write_blocking(self, frame: Frame) -> None:
        if frame.seq == FRAMES // 2:
            self._act("write")

    def close_blocking(self) -> None:
        self._act("close")


def _graph(kind: str, act: Act) -> tuple[Graph, Collect]:
    """source -> through -> bad, and beside it a sink that is good."""

    def quiet(call: str) -> None:
        return None

    def of(wanted: str) -> Act:
        return act if kind == wanted else quiet

    graph = Graph(drain_seconds=DRAIN_SECONDS, hard_stop_seconds=HARD_STOP_SECONDS)
    source = graph.source("source", _Source(of("source")))
    first = graph.transform("transform", _Transform(of("transform"), False), source)
    second = graph.transform("thread", _Transform(of("thread"), True), first)
    good = Collect()
    graph.sink("good", good, second)
    graph.sink("sink", _Sink(of("sink")), second)
    graph.sink("blocking sink", _BlockingSink(of("blocking sink")), second)
    return graph, good


def raising() -> tuple[int, list[str]]:
    """Each error at each call: how many were tried, and what was not as it should be."""
    tried, faults = 0, list[str]()
    for kind, calls in CALLS.items():
        for call in calls:
            for error in ERRORS:
                tried += 1
                wrong = _raised(kind, call, error)
                faults += [f"{kind}.{call} {error.__name__}: {each}" for each in wrong]
    return tried, faults


def _raised(kind: str, call: str, error: type[BaseException]) -> list[str]:
    def act(called: str) -> None:
        if called == call:
            raise error("on purpose")

    before = set(threading.enumerate())
    graph, good = _graph(kind, act)
    wrong = []
    try:
        graph.run_blocking(handle_signals=False)
        wrong.append("nothing was raised")
    except NodeError as raised:
        if raised.node != kind:
            wrong.append(f"the error names {raised.node}")
    except BaseException as other:
        wrong.append(f"it came as {type(other).__name__}: {other}")
    if call != "open" and good.closed != 1:
        wrong.append("the other sink was not closed")
    if good.seqs != list(range(len(good.seqs))):
        wrong.append(f"the other sink has frames {good.seqs}")
    return wrong + _left(before)


def hanging() -> tuple[int, list[str]]:
    """Each call that never returns, in a thread, and a stop: see `raising`."""
    tried, faults = 0, list[str]()
    for kind in ("thread", "blocking sink"):
        for call in CALLS[kind]:
            tried += 1
            faults += [f"{kind}.{call} hangs: {wrong}" for wrong in _hung(kind, call)]
    return tried, faults


def _hung(kind: str, call: str) -> list[str]:
    before = set(threading.enumerate())
    let_go, began = threading.Event(), threading.Event()

    def act(called: str) -> None:
        if called == call:
            began.set()
            let_go.wait()

    graph, _ = _graph(kind, act)
    seconds = 0.0

    async def main() -> None:
        nonlocal seconds
        async with anyio.create_task_group() as group:
            group.start_soon(graph.run)
            await anyio.to_thread.run_sync(began.wait)
            start = time.monotonic()
            graph.stop()
        seconds = time.monotonic() - start

    wrong = []
    try:
        anyio.run(main)
    except BaseException as error:
        wrong.append(f"it came as {error!r}")
    if seconds > ENDS_SECONDS:
        wrong.append(f"it ended {seconds:.1f} s after stop, {ENDS_SECONDS:g} allowed")
    let_go.set()
    return wrong + _left(before)


def _left(before: set[Any]) -> list[str]:
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        threads = set(threading.enumerate()) - before
        left = [thread.name for thread in threads if thread.name != "AnyIO worker thread"]
        if not left:
            return []
        time.sleep(0.01)
    return [f"threads are left: {left}"]
