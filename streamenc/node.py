"""What a node of the graph is: Source, Transform, Sink, each as simple to write as it can be.

Authors of transforms write synchronous push/flush objects without any asyncio. Sources and sinks that
block (files, devices) derive from BlockingSource and BlockingSink: the graph runs those in threads.
Only what talks to an event loop anyway (sockets, the engine) is written as coroutines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable

import anyio.to_thread

from streamenc.clock import Clock, MonotonicClock
from streamenc.frames import Frame, StreamInfo


class Source(ABC):
    """Where frames come from. Opened when the graph is built, closed when it ends, always.

    live    The world does not wait for us (a microphone, a socket): edges behind this source may drop.
    lost    What the source itself lost so far, in frames (a device's overflow, a gap in the sequence).
    clock   Set by the graph before `open`; `Frame.arrived_ns` is read from it.
    """

    live: bool = False
    lost: int = 0
    clock: Clock = MonotonicClock()

    @abstractmethod
    async def open(self) -> StreamInfo:
        """Opens and says what will come.

        Raises MediaError, DeviceError or TransportError where that fails.
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


class BlockingSource(Source):
    """A source whose `read` blocks for a while: the graph calls it in a thread of its own."""

    _stopped = False

    @abstractmethod
    def open_blocking(self) -> StreamInfo: ...

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None at the end. Must return within about 0.5 s once `stop` was called."""

    def close_blocking(self) -> None:
        """Releases everything; may be called twice, and without `open_blocking`."""
        return None

    async def open(self) -> StreamInfo:
        return await anyio.to_thread.run_sync(self.open_blocking)

    async def frames(self) -> AsyncIterator[Frame]:
        while not self._stopped:
            frame = await anyio.to_thread.run_sync(self.read)
            if frame is None:
                return
            yield frame

    def stop(self) -> None:
        self._stopped = True

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close_blocking)


class Transform(ABC):
    """Frames in, frames out, synchronous. Runs on the event loop, so a push takes microseconds.

    Set `blocking = True` where a push takes longer (a resampler over long chunks, a plot): the graph then
    calls push and flush in a thread, one call at a time.
    """

    blocking: bool = False

    @abstractmethod
    def open(self, info: StreamInfo) -> StreamInfo:
        """Agrees on the edge: what comes in decides what goes out. Raises FitError where it cannot."""

    @abstractmethod
    def push(self, frame: Frame) -> Iterable[Frame]: ...

    def flush(self) -> Iterable[Frame]:
        """What is left at the end of the stream."""
        return ()

    def close(self) -> None:
        """Releases everything; may be called twice, and without `open`."""
        return None


class AsyncTransform(ABC):
    """A transform that waits for something: the engine's worker, a clock, a network."""

    clock: Clock = MonotonicClock()

    @abstractmethod
    async def open(self, info: StreamInfo) -> StreamInfo:
        """Agrees on the edge. Raises FitError where it cannot."""

    @abstractmethod
    async def push(self, frame: Frame) -> Iterable[Frame]: ...

    async def flush(self) -> Iterable[Frame]:
        return ()

    async def aclose(self) -> None:
        """Releases everything; may be called twice, and without `open`."""
        return None


class Sink(ABC):
    """Where frames go.

    dropped  Frames that the sink itself had to drop so far (a slow subscriber, a full socket).
    """

    dropped: int = 0
    clock: Clock = MonotonicClock()

    @abstractmethod
    async def open(self, info: StreamInfo) -> None:
        """Raises FitError where `info` cannot be written here; OutputError, DeviceError, TransportError."""

    @abstractmethod
    async def write(self, frame: Frame) -> None: ...

    async def aclose(self) -> None:
        """Completes the output and releases everything; may be called twice, and without `open`."""
        return None


class BlockingSink(Sink):
    """A sink whose `write` blocks for a while (a file, a device): the graph calls it in a thread."""

    @abstractmethod
    def open_blocking(self, info: StreamInfo) -> None: ...

    @abstractmethod
    def write_blocking(self, frame: Frame) -> None: ...

    def close_blocking(self) -> None:
        """Completes the output and releases everything; may be called twice."""
        return None

    async def open(self, info: StreamInfo) -> None:
        await anyio.to_thread.run_sync(self.open_blocking, info)

    async def write(self, frame: Frame) -> None:
        await anyio.to_thread.run_sync(self.write_blocking, frame)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close_blocking)
