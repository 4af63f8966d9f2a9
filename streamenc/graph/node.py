"""What a node of the graph is: Source, Transform, Sink, each as simple to write as it can be.

Authors of transforms write synchronous push/flush objects without any asyncio. Sources and sinks
that block (files, devices) derive from BlockingSource and BlockingSink: those run in threads.
Only what talks to an event loop anyway (sockets, the engine) is written as coroutines.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

from streamenc.graph.clock import Clock, MonotonicClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.worker import Worker, in_daemon_thread

T = TypeVar("T")


class TimedNode:
    """What Source, AsyncTransform and Sink have in common.

    Attributes:
        clock: Set by the graph before `open`; `Frame.arrived_ns` is read from it.
        remarks: Sentences for people about what the node met in the stream or made of it, such as a
            range that it took or a loss and its cure; they may grow, and stand in the report.
    """

    clock: Clock = MonotonicClock()
    remarks: Sequence[str] = ()

    @property
    def worker(self) -> Worker | None:
        """The thread in which the node makes calls that block, None where it has none: one that
        does not return in time is left behind when the graph stops.
        """
        return None


class Source(TimedNode, ABC):
    """Where frames come from. Opened when the graph is built, closed when it ends, always.

    A subclass sets what differs from these defaults:

    Attributes:
        address: Where the frames come from, for people: a path or URL; "" where that has no name.
        live: The world does not wait for us (a microphone, a socket): edges behind it may drop.
            None before `open` where only opening tells (an address of HTTP); then True or False.
        replayed: All frames are there before the first one is read, as in a regular file, so nobody
            waits for a single one: encoders may take long steps. A pipe is neither `live`, as it
            waits, nor `replayed`. Said before `open`.
        lost: Frames that the source itself lost so far (a device's overflow, a gap in the
            sequence).
        broken: Why what came is known not to be the whole (a crash, a connection that was lost, a
            file that was cut short), in words; "" where it is, as far as is known. For good once
            the last frame was read.
        duration_seconds: Length of the whole stream once it is open; None where it is not known.
    """

    address: str = ""
    live: bool | None = False
    replayed: bool = False
    lost: int = 0
    broken: str = ""
    duration_seconds: float | None = None

    @abstractmethod
    async def open(self) -> StreamInfo:
        """Opens and says what will come.

        Raises:
            MediaError: Where that fails.
            DeviceError: Where that fails.
            TransportError: Where that fails.
        """

    @abstractmethod
    def frames(self) -> AsyncIterator[Frame]:
        """The frames, until the stream ends or `stop` was called."""

    @abstractmethod
    def stop(self) -> None:
        """Asks `frames` to end soon: what was already read is still delivered (Ctrl-C drains)."""

    async def aclose(self) -> None:
        """Releases everything; may be called twice, and without `open`."""
        return None


class _Blocking(TimedNode):
    @cached_property
    def worker(self) -> Worker:
        return Worker(type(self).__name__)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Calls `function(*args)` in this node's own thread, after the calls made before."""
        with self.clock.busy():
            return await self.worker.call(partial(function, *args))


class BlockingSource(_Blocking, Source):
    """A source whose `read` blocks for a while: it is called in a thread of this node's own."""

    _stopped = False

    @abstractmethod
    def open_blocking(self) -> StreamInfo: ...

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None at the end. Returns within about 0.5 s once `stop` was called."""

    def gather(self) -> None:
        """Before `open_blocking`: nobody waits for single frames. They may be longer, which saves
        what each of them costs."""
        return None

    def close_blocking(self) -> None:
        """Releases everything; may be called twice, and without `open_blocking`."""
        return None

    async def open(self) -> StreamInfo:
        return await self.in_thread(self.open_blocking)

    async def open_abandonable(self, halt: threading.Event) -> StreamInfo:
        """`open` where that may take long: Ctrl-C ends it, and `halt` then tells its thread.

        `in_thread` waits for its call even when it is cancelled.
        """
        with self.clock.busy():
            try:
                return await in_daemon_thread(self.open_blocking)
            except BaseException:  # the thread is told, and the error passed on
                halt.set()
                raise

    async def frames(self) -> AsyncIterator[Frame]:
        while not self._stopped:
            frame = await self.in_thread(self.read)
            if frame is None:
                return
            yield frame

    def stop(self) -> None:
        self._stopped = True

    async def aclose(self) -> None:
        try:
            await self.in_thread(self.close_blocking)
        finally:
            self.worker.close()


class Transform(ABC):
    """Frames in, frames out, synchronous. Runs on the event loop, so a push takes microseconds.

    Set `blocking = True` where a push takes longer (a resampler over long chunks, a plot): then the
    graph calls all methods in a thread, one call at a time. `remarks` is as TimedNode's.
    """

    blocking: bool = False
    remarks: Sequence[str] = ()

    @abstractmethod
    def open(self, info: StreamInfo) -> StreamInfo:
        """Agrees on the edge: what comes in decides what goes out. Raises FitError where not."""

    @abstractmethod
    def push(self, frame: Frame) -> Iterable[Frame]: ...

    def flush(self) -> Iterable[Frame]:
        """What is left at the end of the stream."""
        return ()

    def close(self) -> None:
        """Releases everything; may be called twice, and without `open`."""
        return None


class AsyncTransform(TimedNode, ABC):
    """A transform that waits for something: the engine's worker, a clock, a network.

    Attributes:
        live: Frames come out when they are due, as of a live source: edges behind it may drop.
    """

    live: bool = False

    @abstractmethod
    async def open(self, info: StreamInfo) -> StreamInfo:
        """Agrees on the edge. Raises FitError where it cannot."""

    @abstractmethod
    async def push(self, frame: Frame) -> Iterable[Frame]: ...

    async def flush(self) -> Iterable[Frame]:
        return ()

    def stop(self) -> None:
        """Told when the sources are asked to end: what waits until a frame is due need not."""
        return None

    async def aclose(self) -> None:
        """Releases everything; may be called twice, and without `open`."""
        return None


class Sink(TimedNode, ABC):
    """Where frames go.

    Attributes:
        dropped: Frames that the sink itself had to drop so far (a slow subscriber, a full socket).
        broken: Why the stream ended before its end, set by the graph before `aclose`; "" where it
            ended as it should. What the sink leaves behind tells of it, where its format can.
    """

    dropped: int = 0
    broken: str = ""

    @abstractmethod
    async def open(self, info: StreamInfo) -> None:
        """Gets ready for frames of `info`.

        Raises FitError where they cannot be written here; OutputError, DeviceError, TransportError.
        """

    @abstractmethod
    async def write(self, frame: Frame) -> None: ...

    def stop(self) -> None:
        """The stream was asked to end: a sink that waits for somebody waits no longer for nobody.

        Called on the event loop; frames that are on their way still come.
        """
        return None

    async def aclose(self) -> None:
        """Completes the output and releases everything; may be called twice, and without `open`."""
        return None


class BlockingSink(_Blocking, Sink):
    """A sink whose `write` blocks for a while (a file, a device): called in a thread of its own."""

    @abstractmethod
    def open_blocking(self, info: StreamInfo) -> None: ...

    @abstractmethod
    def write_blocking(self, frame: Frame) -> None: ...

    def close_blocking(self) -> None:
        """Completes the output and releases everything; may be called twice."""
        return None

    async def open(self, info: StreamInfo) -> None:
        await self.in_thread(self.open_blocking, info)

    async def write(self, frame: Frame) -> None:
        await self.in_thread(self.write_blocking, frame)

    async def aclose(self) -> None:
        try:
            await self.in_thread(self.close_blocking)
        finally:
            self.worker.close()
