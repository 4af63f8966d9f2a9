"""NodeTask: one node of a graph at work between its channels. One class per kind of node."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import ClassVar, TypeVar, get_args

import anyio
from anyio.lowlevel import checkpoint

from streamenc.errors import FitError, UsageError
from streamenc.graph.channel import DEFAULT_CAPACITY, Channel
from streamenc.graph.clock import Clock
from streamenc.graph.edge import Policy
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.merge import MergeOrder
from streamenc.graph.node import AsyncTransform, Sink, Source, Transform
from streamenc.graph.report import NodeReport, SinkMeter, SinkReport
from streamenc.graph.worker import Worker
from streamenc.latency import LatencyHistogram

log = logging.getLogger(__name__)

T = TypeVar("T")


class NobodyListens(Exception):
    """Whatever took a node's frames has failed; there is nothing left to do for it."""


class NodeTask(ABC):
    """What the graph knows of one node.

    upstream  Names of the tasks whose frames come in.
    info      What goes out (of a sink: what comes in), once open.
    live      Whether every source behind it is live.
    sources   Names of the sources behind it.
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
        capacity: int = DEFAULT_CAPACITY,
        policy: Policy = "block",
        worker: Worker | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            known = ", ".join(get_args(Policy))
            raise UsageError(f"node {name!r} got policy {policy!r}; known are {known}")
        self.name = name
        self.clock = clock
        self.upstream = tuple(upstream)
        self.capacity = capacity
        self.policy = policy
        self.worker = worker
        self.inputs: list[Channel] = []
        self.outputs: list[Channel] = []
        self.info: StreamInfo | None = None
        self.live = False
        self.sources: frozenset[str] = frozenset()
        self.in_hand = 0
        self.broken = ""
        self._frames_out = 0
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

    def connect(self, producer: NodeTask) -> None:
        """Makes the edge from `producer` to here.

        Raises FitError where it may drop but a source behind it would lose nothing by waiting.
        """
        if self.policy != "block" and not producer.live:
            raise FitError(
                f'policy "{self.policy}" may lose frames of a source that would wait; '
                'behind anything but live sources use "block"'
            )
        name = f"{producer.name} -> {self.name}"
        channel = Channel(
            self.capacity, self.policy, name=name, clock=self.clock, arrival=self.arrival
        )
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
        )

    def _given_up(self) -> int:
        return 0

    def _sink_report(self) -> SinkReport | None:
        return None

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
        self._processing.record(self.clock.now_ns() - start_ns)
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
        self.cut_off = False  # it did not hear `stop`: what it gives is not taken any more
        self._cut_short = ""
        self._frames: AsyncIterator[Frame] | None = None

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self.node.clock = self.clock
        info = _checked(await self.node.open())
        self.live = bool(self.node.live)
        return info

    async def run(self) -> None:
        self._frames = self.node.frames()
        async for frame in self._frames:
            if self.cut_off:
                return
            await self._emit((frame,), self.clock.now_ns())

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


class TransformTask(NodeTask):
    """A synchronous transform: on the loop, or in a thread where it says that it blocks."""

    kind = "transform"

    def __init__(
        self, name: str, clock: Clock, node: Transform, after: str, capacity: int, policy: Policy
    ) -> None:
        worker = Worker(name) if node.blocking else None
        super().__init__(name, clock, (after,), capacity, policy, worker)
        self.node: Transform = node

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        (info,) = infos
        return _checked(await self._call(lambda: self.node.open(info)))

    async def run(self) -> None:
        arrived_ns = 0
        async for frame in self.inputs[0]:
            arrived_ns = frame.arrived_ns
            self.in_hand = 1
            await self._emit(await self._timed(self._push(frame)), arrived_ns)
        await self._emit(await self._timed(self._flush()), arrived_ns)

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


class AsyncTransformTask(NodeTask):
    kind = "transform"

    def __init__(
        self,
        name: str,
        clock: Clock,
        node: AsyncTransform,
        after: str,
        capacity: int,
        policy: Policy,
    ) -> None:
        super().__init__(name, clock, (after,), capacity, policy, node.worker)
        self.node: AsyncTransform = node

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self.node.clock = self.clock
        return _checked(await self.node.open(*infos))

    async def run(self) -> None:
        arrived_ns = 0
        async for frame in self.inputs[0]:
            arrived_ns = frame.arrived_ns
            self.in_hand = 1
            made: Iterable[Frame] = await self._timed(self.node.push(frame))
            await self._emit(list(made), arrived_ns)
        await self._emit(list(await self._timed(self.node.flush())), arrived_ns)

    async def close(self) -> None:
        await self.node.aclose()


class MergeTask(NodeTask):
    """Several inputs into one mux; the order is MergeOrder's.

    source_sets  For each input, the sources behind it.
    reordered    Frames that came out later than in order.
    """

    kind = "merge"

    def __init__(
        self,
        name: str,
        clock: Clock,
        upstream: Sequence[str],
        max_wait_ns: int,
        capacity: int,
        policy: Policy,
    ) -> None:
        super().__init__(name, clock, upstream, capacity, policy)
        self.arrival: asyncio.Event = asyncio.Event()
        self.source_sets: list[frozenset[str]] = []
        self.reordered = 0
        self._max_wait_ns = max_wait_ns
        self._latest: Fraction | None = None

    async def open(self, infos: Sequence[StreamInfo]) -> StreamInfo:
        self._order = MergeOrder(infos, self._max_wait_ns)
        return self._order.info

    async def run(self) -> None:
        while True:
            self.arrival.clear()
            ended = [channel.ended for channel in self.inputs]
            if all(ended):
                return
            heads = [channel.peek() for channel in self.inputs]
            stuck = self._stuck(heads, ended)
            track, due_ns = self._order.pick(heads, ended, self.clock.now_ns(), stuck=stuck)
            if track is None:
                await self._wait(due_ns)
            else:
                frame = self.inputs[track].receive_nowait()
                self._note_order(track, frame)
                await self._emit((frame.with_(track=track),), frame.arrived_ns)

    def _stuck(self, heads: Sequence[Frame | None], ended: Sequence[bool]) -> bool:
        """Whether an input is full and so holds up the source of one that is waited for."""
        awaited = [
            sources
            for sources, head, over in zip(self.source_sets, heads, ended, strict=True)
            if head is None and not over
        ]
        return any(
            channel.full and channel.policy == "block" and sources & others
            for channel, sources in zip(self.inputs, self.source_sets, strict=True)
            for others in awaited
        )

    def _note_order(self, track: int, frame: Frame) -> None:
        seconds = frame.pts * self._order.info.tracks[track].time_base
        if self._latest is not None and seconds < self._latest:
            self.reordered += 1
            if self.reordered == 1:
                log.warning(
                    "%s: a frame of track %d comes %.0f ms out of order, as it was not there in "
                    "time: a longer max_wait_ms or a larger capacity waits for such",
                    self.name, track, 1e3 * float(self._latest - seconds),
                )  # fmt: skip
        else:
            self._latest = seconds

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
        capacity: int,
        policy: Policy,
    ) -> None:
        super().__init__(name, clock, (after,), capacity, policy, node.worker)
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
            self.in_hand = 1
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
        return self._meter.report() if self._meter else None
