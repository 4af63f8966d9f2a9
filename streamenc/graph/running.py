"""NodeTask: one node of a graph at work between its channels. One class per kind of node."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import ClassVar, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from streamenc.errors import FitError
from streamenc.graph.channel import Channel
from streamenc.graph.clock import Clock
from streamenc.graph.edge import Edge
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.merge import MergeOrder
from streamenc.graph.node import AsyncTransform, Sink, Source, Transform
from streamenc.graph.report import NodeReport, SinkMeter, SinkReport
from streamenc.graph.worker import Worker
from streamenc.latency import LatencyHistogram

T = TypeVar("T")

SMOOTHED_OVER = 4  # pushes


class NobodyListens(Exception):
    """Whatever took a node's frames has failed; there is nothing left to do for it."""


class NodeTask(ABC):
    """What the graph knows of one node.

    upstream  Names of the tasks whose frames come in.
    info      What goes out (of a sink: what comes in), once open.
    edge      How the edges in front of it are asked to be.
    consumers Tasks that take its frames.
    live      Whether every source behind it is live, or paced.
    sources   Those behind it.
    worker    The thread in which the node's blocking calls run, if it has one.
    in_hand   Frames taken from a channel, or made, and not yet handed on.
    broken    Why its stream ended before its end, once it ended; "" where it did not.
    """

    kind: ClassVar[str]
    node: Source | Transform | AsyncTransform | Sink | None = None
    arrival: asyncio.Event | None = None

    def __init__(
        self,
        name: str,
        clock: Clock,
        upstream: Sequence[str] = (),
        edge: Edge | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.upstream = tuple(upstream)
        self.edge = edge or Edge()
        self.edge.check(f"node {name!r}")
        self.worker = worker
        self.inputs: list[Channel] = []
        self.outputs: list[Channel] = []
        self.info: StreamInfo | None = None
        self.live = False
        self.sources: frozenset[SourceTask] = frozenset()
        self.in_hand = 0
        self.broken = ""
        self._frames_out = 0
        self.consumers: list[NodeTask] = []
        self._producers: list[NodeTask] = []
        self._lately_ns = 0  # what a push or write took, smoothed
        self._taken_seconds = 0.0  # of the stream, by all frames that came in
        self._processing = LatencyHistogram()

    @abstractmethod
    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        """Opens the node; `infos` are what comes in."""

    @abstractmethod
    async def run(self) -> None:
        """Passes frames on until the inputs end and the node is flushed."""

    async def close(self) -> None:
        """Closes the node; may be called twice, and without `open`."""
        return None

    def connect(self, producer: NodeTask, max_age_ms: float | None = None) -> None:
        """Makes the edge from `producer` to here.

        max_age_ms  Of edges behind live sources that say nothing else.

        Raises FitError where it may drop but a source behind it would lose nothing by waiting.
        """
        edge = self.edge.behind(producer.live, max_age_ms)
        channel = Channel(
            edge.capacity,
            edge.policy,
            max_age_ms=edge.max_age_ms,
            ahead_ns=lambda: self.ahead_ns,
            name=f"{producer.name} -> {self.name}",
            clock=self.clock,
            arrival=self.arrival,
        )
        self._producers.append(producer)
        self.sources |= producer.sources
        producer.consumers.append(self)
        self.inputs.append(channel)
        producer.outputs.append(channel)

    def broken_off(self) -> str:
        """Why the stream that `run` came to the end of was not whole; "" where it was."""
        return next((channel.broken for channel in self.inputs if channel.broken), "")

    def end(self) -> None:
        """Tells what is behind that no more comes, and what is in front that no more is taken."""
        for channel in self.outputs:
            channel.close_send(self.broken)
        for channel in self.inputs:
            channel.close_receive()

    @property
    def moved(self) -> int:
        """Grows whenever the node takes or gives a frame."""
        return self._frames_out + sum(channel.statistics().received for channel in self.inputs)

    @property
    def ahead_ns(self) -> int:
        """What a frame takes of late from here to the slowest sink, without waiting."""
        return self._lately_ns + max((task.ahead_ns for task in self.consumers), default=0)

    @property
    def slowest_seconds(self) -> float:
        """Of its pushes or writes so far."""
        return self._processing.max_ns / 1e9

    def report(self) -> NodeReport:
        statistics = [channel.statistics() for channel in self.inputs]
        queue_wait = LatencyHistogram()
        for channel in self.inputs:
            queue_wait.merge(channel.queue_wait)
        return NodeReport(
            name=self.name,
            kind=self.kind,
            stream=str(self.info or ""),
            frames_in=sum(s.received for s in statistics),
            frames_out=self._frames_out,
            dropped=sum(s.dropped for s in statistics) + self._given_up(),
            in_flight=sum(s.in_flight for s in statistics) + self.in_hand,
            queue_wait=queue_wait.summary(),
            processing=self._processing.summary(),
            sink=self._sink_report(),
            remarks=self._remarks(),
            broken=self.broken,
            taken_seconds=self._taken_seconds,
            in_time=self.live and self._works,
        )

    def _given_up(self) -> int:
        return 0

    def _sink_report(self) -> SinkReport | None:
        return None

    @property
    def _works(self) -> bool:
        """Whether it takes its time for its work, rather than for waiting until a frame is due."""
        return True

    def _take(self, frame: Frame) -> None:
        """Counts a frame that comes into the node's hands."""
        self.in_hand = 1
        info = self._producers[0].info
        assert info is not None
        self._taken_seconds += float(info.length(frame))

    def _remarks(self) -> tuple[str, ...]:
        return () if self.node is None else tuple(self.node.remarks)

    async def _emit(self, frames: Sequence[Frame], arrived_ns: int) -> None:
        """Hands each frame to every output; `arrived_ns` goes to those whose author set none.

        Raises NobodyListens where all outputs have failed.
        """
        self.in_hand = len(frames)
        for frame in frames:
            if not frame.arrived_ns:
                frame = frame.with_(arrived_ns=arrived_ns)
            await checkpoint()
            # Branches with room get it first: they need not wait for the one that is full.
            full = [channel for channel in self.outputs if not _offer(channel, frame)]
            for channel in full:
                with suppress(anyio.BrokenResourceError):
                    await channel.send(frame)
            if all(channel.unheard for channel in self.outputs):
                raise NobodyListens
            self.in_hand -= 1
            self._frames_out += 1

    async def _timed(self, work: Awaitable[T]) -> T:
        start_ns = self.clock.now_ns()
        result = await work
        took_ns = self.clock.now_ns() - start_ns
        self._processing.record(took_ns)
        self._lately_ns += (took_ns - self._lately_ns) // SMOOTHED_OVER
        return result


def _offer(channel: Channel, frame: Frame) -> bool:
    """False where `channel` has no room; one whose receiver failed goes without."""
    try:
        channel.send_nowait(frame)
    except anyio.WouldBlock:
        return False
    except anyio.BrokenResourceError:
        pass
    return True


def _checked(info: StreamInfo) -> StreamInfo:
    if not isinstance(info, StreamInfo):
        raise FitError(f"open returned {info!r}; it returns the StreamInfo of what goes out")
    return info


class SourceTask(NodeTask):
    kind = "source"

    def __init__(self, name: str, clock: Clock, node: Source) -> None:
        super().__init__(name, clock, worker=node.worker)
        self.node: Source = node
        self.sources = frozenset({self})
        self.began_ns: int | None = None  # when the first frame was heard, at its beginning
        self.cut_off = False  # it did not hear `stop`: what it gives is not taken any more
        self._cut_short = ""
        self._frames: AsyncIterator[Frame] | None = None

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self.node.clock = self.clock
        info = _checked(await self.node.open())
        self.live = bool(self.node.live)
        return info

    async def run(self) -> None:
        info, opened_ns = self.info, self.clock.now_ns()
        assert info is not None
        self._frames = self.node.frames()
        async for frame in self._frames:
            if self.cut_off:
                return
            now_ns = self.clock.now_ns()
            if self.began_ns is None:
                # A device that takes its time to start is not slow; a file is there at once.
                heard_ns = (frame.arrived_ns or now_ns) - int(info.length(frame) * 10**9)
                self.began_ns = max(opened_ns, heard_ns)
            await self._emit((frame,), now_ns)

    def broken_off(self) -> str:
        return self._cut_short or self.node.broken

    async def close(self) -> None:
        try:
            # A generator that was left half way would otherwise be finished by the loop, too late.
            if (finish := getattr(self._frames, "aclose", None)) is not None:
                await finish()
        finally:
            await self.node.aclose()

    def stop(self, broken: str = "") -> None:
        """Asks it to end; `broken` says why that is before its end, where nobody wanted it."""
        self._cut_short = self._cut_short or broken
        self.node.stop()

    def _given_up(self) -> int:
        return self.node.lost


class PassingTask(NodeTask):
    """What transforms of both kinds have in common."""

    kind = "transform"

    async def run(self) -> None:
        arrived_ns = 0
        async for frame in self.inputs[0]:
            arrived_ns = frame.arrived_ns
            self._take(frame)
            await self._emit(await self._timed(self._push(frame)), arrived_ns)
        await self._emit(await self._timed(self._flush()), arrived_ns)

    @abstractmethod
    async def _push(self, frame: Frame) -> list[Frame]: ...

    @abstractmethod
    async def _flush(self) -> list[Frame]: ...


class TransformTask(PassingTask):
    """A synchronous transform: on the loop, or in a thread where it says that it blocks."""

    def __init__(self, name: str, clock: Clock, node: Transform, after: str, edge: Edge) -> None:
        super().__init__(name, clock, (after,), edge, Worker(name) if node.blocking else None)
        self.node: Transform = node

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        (info,) = infos
        return _checked(await self._call(lambda: self.node.open(info)))

    async def close(self) -> None:
        try:
            await self._call(self.node.close)
        finally:
            if self.worker is not None:
                self.worker.close()

    # What comes back may be a generator: it is run to its end here, where its time is measured.
    async def _push(self, frame: Frame) -> list[Frame]:
        return await self._call(lambda: list(self.node.push(frame)))

    async def _flush(self) -> list[Frame]:
        return await self._call(lambda: list(self.node.flush()))

    async def _call(self, function: Callable[[], T]) -> T:
        if self.worker is None:
            return function()
        with self.clock.busy():
            return await self.worker.call(function)


class AsyncTransformTask(PassingTask):
    def __init__(
        self, name: str, clock: Clock, node: AsyncTransform, after: str, edge: Edge
    ) -> None:
        super().__init__(name, clock, (after,), edge, node.worker)
        self.node: AsyncTransform = node

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self.node.clock = self.clock
        self.live = self.live or self.node.live
        return _checked(await self.node.open(*infos))

    async def close(self) -> None:
        await self.node.aclose()

    async def _push(self, frame: Frame) -> list[Frame]:
        return list(await self.node.push(frame))

    async def _flush(self) -> list[Frame]:
        return list(await self.node.flush())

    @property
    def _works(self) -> bool:
        return not self.node.live


class MergeTask(NodeTask):
    """Several inputs into one mux; the order is MergeOrder's.

    reordered  Frames that came out later than in order.
    """

    kind = "merge"

    def __init__(
        self,
        name: str,
        clock: Clock,
        upstream: Sequence[str],
        max_wait_ns: int,
        edge: Edge,
    ) -> None:
        super().__init__(name, clock, upstream, edge)
        self.arrival: asyncio.Event = asyncio.Event()
        self.reordered = 0
        self._max_wait_ns = max_wait_ns
        self._latest: Fraction | None = None
        self._late = Fraction(0)

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self._order = MergeOrder(infos, self._max_wait_ns)
        return self._order.info

    async def run(self) -> None:
        while True:
            self.arrival.clear()
            heads = [channel.peek() for channel in self.inputs]
            ended = [channel.ended for channel in self.inputs]
            if all(ended):
                return
            stuck = self._stuck(heads, ended)
            track, due_ns = self._order.pick(heads, ended, self.clock.now_ns(), stuck=stuck)
            if track is None:
                await self._wait(due_ns)
                continue
            try:
                frame = self.inputs[track].receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                continue  # by now it was too old
            self._note_order(track, frame)
            await self._emit((frame.with_(track=track),), frame.arrived_ns)

    def _stuck(self, heads: Sequence[Frame | None], ended: Sequence[bool]) -> bool:
        """Whether an input is full and so holds up the source of one that is waited for."""
        awaited = [
            producer.sources
            for producer, head, over in zip(self._producers, heads, ended, strict=True)
            if head is None and not over
        ]
        return any(
            channel.full and channel.policy == "block" and producer.sources & others
            for channel, producer in zip(self.inputs, self._producers, strict=True)
            for others in awaited
        )

    def _note_order(self, track: int, frame: Frame) -> None:
        info = self._order.info.tracks[track]
        if info.kind == "text" and not frame.duration:
            return  # an event, such as the start of speech, is known only after its time
        seconds = frame.pts * info.time_base
        self._latest = seconds if self._latest is None else max(self._latest, seconds)
        self.reordered += seconds < self._latest
        self._late = max(self._late, self._latest - seconds)

    def _remarks(self) -> tuple[str, ...]:
        if not self.reordered:
            return ()
        return (
            f"{self.reordered} frames came out later than in order, by up to "
            f"{1e3 * float(self._late):.0f} ms, as they were not there in time: a longer "
            "max_wait_ms or a larger capacity waits for such",
        )

    async def _wait(self, due_ns: int | None) -> None:
        if due_ns is None:
            await self.arrival.wait()
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self._ring_at, due_ns)
            await self.arrival.wait()
            group.cancel_scope.cancel()

    async def _ring_at(self, due_ns: int) -> None:
        await self.clock.sleep_until_ns(due_ns)
        self.arrival.set()


class SinkTask(NodeTask):
    kind = "sink"

    def __init__(
        self,
        name: str,
        clock: Clock,
        node: Sink,
        after: str,
        deadline_ns: int | None,
        edge: Edge,
    ) -> None:
        super().__init__(name, clock, (after,), edge, node.worker)
        self.node: Sink = node
        self._deadline_ns = deadline_ns
        self._meter: SinkMeter | None = None

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        (info,) = infos
        self.node.clock = self.clock
        await self.node.open(info)
        return info

    async def run(self) -> None:
        assert self.info is not None
        self._meter = SinkMeter(self.info, self.clock.now_ns(), self._deadline_ns)
        async for frame in self.inputs[0]:
            self._take(frame)
            await self._timed(self.node.write(frame))
            self._meter.wrote(frame, self.clock.now_ns())
            self.in_hand = 0
            self._frames_out += 1

    async def close(self) -> None:
        self.node.broken = self.broken
        await self.node.aclose()

    def _given_up(self) -> int:
        return self.node.dropped

    def _sink_report(self) -> SinkReport | None:
        if self._meter is None:
            return None
        began = [source.began_ns for source in self.sources if source.began_ns is not None]
        return self._meter.report(min(began, default=None))
