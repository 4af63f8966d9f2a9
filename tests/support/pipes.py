"""Small nodes that the tests of the graph are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from fractions import Fraction
from typing import Any

import anyio
import numpy as np

from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import BlockingSink, Sink, Source, Transform

TICK_NS = 1_000_000
AUDIO = StreamInfo("audio", Fraction(1, 1000), Fraction(1000), (1, None), "float32")
DATA = np.zeros((1, 20), np.float32)


class Ticks(Source):
    """`count` frames (endless if None) of 20 ticks of 1 ms, one each `period_ms`, on the clock."""

    def __init__(
        self,
        count: int | None = 5,
        period_ms: float = 20,
        *,
        live: bool = False,
        info: StreamInfo = AUDIO,
        jitter: Callable[[int], float] = lambda seq: 0.0,
        fail_at: int | None = None,
        deaf: bool = False,
    ) -> None:
        self.count, self.period_ms, self.live, self.info = count, period_ms, live, info
        self.jitter, self.fail_at, self.deaf = jitter, fail_at, deaf
        self.stopped = False
        self.opened = self.closed = self.made = 0

    async def open(self) -> StreamInfo:
        self.opened += 1
        return self.info

    async def frames(self) -> AsyncIterator[Frame]:
        due_ns = self.clock.now_ns()
        seq = 0
        while (self.count is None or seq < self.count) and (self.deaf or not self.stopped):
            if seq == self.fail_at:
                raise ValueError("source broke")
            due_ns += round((self.period_ms + self.jitter(seq)) * TICK_NS)
            await self.clock.sleep_until_ns(due_ns)
            self.made += 1
            yield Frame(DATA, 20 * seq, 20, seq, arrived_ns=self.clock.now_ns())
            seq += 1

    def stop(self) -> None:
        self.stopped = True

    async def aclose(self) -> None:
        self.closed += 1


class Given(Source):
    """`frames` of `info`, as fast as they are taken."""

    def __init__(self, info: StreamInfo, frames: Iterable[Frame]) -> None:
        self.info, self.given = info, frames
        self.stopped = False

    async def open(self) -> StreamInfo:
        return self.info

    async def frames(self) -> AsyncIterator[Frame]:
        for frame in self.given:
            if self.stopped:
                return
            yield frame

    def stop(self) -> None:
        self.stopped = True


class Collect(Sink):
    """Keeps every frame; each write takes `write_ms` on the clock."""

    def __init__(
        self,
        write_ms: Callable[[int], float] | float = 0,
        *,
        fail_at: int | None = None,
        fail_close: bool = False,
    ) -> None:
        self.write_ms, self.fail_at, self.fail_close = write_ms, fail_at, fail_close
        self.got: list[Frame] = []
        self.times_ns: list[int] = []
        self.info: StreamInfo | None = None
        self.closed = 0

    async def open(self, info: StreamInfo) -> None:
        self.info = info

    async def write(self, frame: Frame) -> None:
        if len(self.got) == self.fail_at:
            raise OSError("disk full")
        pause = self.write_ms(frame.seq) if callable(self.write_ms) else self.write_ms
        if pause:
            await self.clock.sleep_until_ns(self.clock.now_ns() + round(pause * TICK_NS))
        self.got.append(frame)
        self.times_ns.append(self.clock.now_ns())

    async def aclose(self) -> None:
        self.closed += 1
        if self.fail_close:
            raise OSError("trailer not written")

    @property
    def seqs(self) -> list[int]:
        return [frame.seq for frame in self.got]


class Held(Transform):
    """Hands frames on one push late; flush gives the last one. Stamps nothing itself."""

    def __init__(self, *, blocking: bool = False, fail_at: int | None = None) -> None:
        self.blocking, self.fail_at = blocking, fail_at
        self.held: list[Frame] = []
        self.opened = self.closed = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        self.opened += 1
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        if frame.seq == self.fail_at:
            raise ValueError("transform broke")
        yield from self.held
        self.held = [frame.with_(arrived_ns=0)]

    def flush(self) -> Iterable[Frame]:
        yield from self.held

    def close(self) -> None:
        self.closed += 1


class BlockingCollect(BlockingSink):
    """Calls `work(frame)` in its thread for each frame, then keeps it."""

    def __init__(self, work: Callable[[Frame], object] = lambda frame: None) -> None:
        self.work = work
        self.got: list[Frame] = []
        self.log: list[str] = []

    def open_blocking(self, info: StreamInfo) -> None:
        self.log.append("open")

    def write_blocking(self, frame: Frame) -> None:
        self.log.append("write")
        self.work(frame)
        self.got.append(frame)
        self.log.append("wrote")

    def close_blocking(self) -> None:
        self.log.append("close")


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits in real time."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (threads set it, too)
            await anyio.sleep(0.005)


def virtual(**options: Any) -> Graph:
    return Graph(clock=VirtualClock(), **options)


def chain(*nodes: Any, **options: Any) -> Graph:
    """source, transforms..., sink in a row."""
    graph = virtual(**options)
    name = graph.source("source", nodes[0])
    for i, node in enumerate(nodes[1:-1]):
        name = graph.transform(f"t{i}", node, name)
    graph.sink("sink", nodes[-1], name)
    return graph
