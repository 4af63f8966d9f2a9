"""A live stream as an iterator, with asyncio or not, in a program without a graph of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import Any, Self

import anyio
import numpy as np

from streamenc import io, options
from streamenc.addresses import shown_address
from streamenc.errors import NodeError, StreamencError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import Sink, Source
from streamenc.nodes.select import Select

log = logging.getLogger(__name__)

MAX_CAPACITY = 1_000_000
# So often a waiting thread looks whether it was interrupted, where the system does not wake it.
LOOK_SECONDS = 0.5
CLOSE_SECONDS = 2.0


class Piece(tuple[np.ndarray[Any, Any], float, bool]):
    """What came at once: `data, seconds, gap = piece`.

    Attributes:
        data: (codebooks, frames) of codes, (bins, frames) of features, (channels, samples), (1,
            segments) of text, ...
        seconds: When it begins, on the source's clock.
        gap: Whether it does not follow on from the piece before: something was lost, or skipped.
        segment: Of text and what was made of it, the source's number of the segment; -1 where it
            has none.
        revised: Whether it replaces what an earlier piece of the same segment said.
        frame: All that is known of it: pts, duration, seq, scale, and the track within a mux.
    """

    frame: Frame
    _info: StreamInfo

    def __new__(cls, frame: Frame, info: StreamInfo) -> Self:
        base = info.track(frame.track).time_base
        made = super().__new__(
            cls,
            (frame.data, frame.pts * base.numerator / base.denominator, frame.discontinuity),
        )
        made.frame, made._info = frame, info
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copies, and queues between processes
        return self.frame, self._info

    @property
    def data(self) -> np.ndarray[Any, Any]:
        return self[0]

    @property
    def seconds(self) -> float:
        return self[1]

    @property
    def gap(self) -> bool:
        return self[2]

    @property
    def segment(self) -> int:
        return self.frame.segment

    @property
    def revised(self) -> bool:
        return self.frame.revised

    def __repr__(self) -> str:
        return f"Piece({self.seconds:.3f} s, {self.frame!r})"


class Subscription:
    """What `subscribe` gives: an iterator over Pieces, for `for` and for `async for`, and a context
    manager of both kinds. It reads in a thread of its own, from when it was made.

    Iterating ends with the stream, and raises what ended it otherwise (TransportError, ...) once
    all that came was given; in a fork of this process, UsageError. Leaving `with`, Ctrl-C within
    `next`, and forgetting it close it.
    """

    def __init__(self, target: str, track: int | None, capacity: int, **given: Any) -> None:
        capacity = options.integer("capacity", capacity, 1, MAX_CAPACITY)
        self._source = io.source(target, **given)
        self._handover = _Handover(capacity, self._source)
        graph = Graph()
        after = graph.source("source", self._source)
        if track is not None:
            after = graph.transform("select", Select(track), after)
        graph.sink("subscription", self._handover, after)
        name = f"subscription {shown_address(target)}"
        thread = threading.Thread(target=_run, args=(graph, self._handover), name=name, daemon=True)
        self._process = os.getpid()
        self._close = weakref.finalize(self, _end, graph, self._handover, thread, self._process)
        thread.start()

    @property
    def info(self) -> StreamInfo:
        """What the stream is; waits until it is known. Raises what prevents that."""
        self._check_process()
        return self._handover.opened()

    @property
    def lost(self) -> int:
        """Frames that were lost so far: on the way, and as nobody took them here in time."""
        return self._source.lost + self._handover.dropped

    @property
    def broken(self) -> str:
        """Why what came is known not to be the whole, in words; "" where it is."""
        return self._source.broken

    def close(self) -> None:
        """Ends it; what came and was not taken is forgotten. May be called twice."""
        self._close()

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        self._check_process()
        try:
            while (piece := self._handover.take()) is None:
                if self._handover.over:
                    self._say_broken()
                    raise StopIteration
                self._handover.wait()
            return piece
        except BaseException:  # Ctrl-C among them; it is passed on
            self.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        self._check_process()
        while (piece := self._handover.take()) is None:
            if self._handover.over:
                self._say_broken()
                await self.aclose()
                raise StopAsyncIteration
            await self._handover.wait_async()
        return piece

    def _check_process(self) -> None:
        """Raises UsageError in a fork of the process that reads: no thread comes along there."""
        if os.getpid() != self._process:
            raise UsageError(
                f"this subscription is read in process {self._process}, and process {os.getpid()} "
                "is a fork of it, which its thread did not come along to: subscribe after the "
                "fork, or start processes by spawn (multiprocessing.get_context('spawn'))"
            )

    def _say_broken(self) -> None:
        # A file has logged it itself.
        if self.broken and self._close.alive and not self._source.replayed:
            log.warning("%s", self.broken)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def subscribe(
    url: str, *, track: int | None = None, capacity: int = 64, **options: Any
) -> Subscription:
    """What comes from a token stream, piece by piece, as numpy arrays.

        for codes, seconds, gap in streamenc.subscribe("zmq+tcp://127.0.0.1:5555"):
            ...

    Args:
        url: A network stream, a device, or any other input.
        track: Takes one track of a mux; None takes all, and `Piece.frame.track` says which.
        capacity: Frames that may wait here. Beyond that a live stream loses its oldest, which is
            counted and flagged as a gap; any other waits.
        options: Of the input, as `streamenc help` lists them.

    Raises:
        UsageError: For an unknown input or option. What prevents the stream from being opened is
            raised by the first `next`.
    """
    return Subscription(url, track, capacity, **options)


class _Handover(Sink):
    """Takes frames from the graph's event loop to whoever waits in a thread or in another loop.

    source  Of a live one, it gives up the oldest frame for a new one where it is full, instead of
            waiting.
    over    Whether nothing will come any more.
    """

    def __init__(self, capacity: int, source: Source) -> None:
        self.over = False
        self._capacity, self._source = capacity, source
        self._info: StreamInfo | None = None
        self._failure: BaseException | None = None
        self._frames: deque[Frame] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the graph's, while it is open
        self._room = asyncio.Event()

    async def open(self, info: StreamInfo) -> None:
        with self._changed:
            self._info, self._loop = info, asyncio.get_running_loop()
            self._notify()

    async def write(self, frame: Frame) -> None:
        while not self._put(frame):
            self._room.clear()
            await self._room.wait()

    async def aclose(self) -> None:
        with self._changed:
            self._loop = None

    def finish(self, failure: BaseException | None) -> None:
        """Nothing will come any more; `failure` is raised once all frames are taken."""
        with self._changed:
            self._failure, self.over = failure, True
            self._notify()

    def close(self) -> None:
        """What comes from now on is forgotten."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._make_room()

    def take(self) -> Piece | None:
        """The next one, None where there is none now. Raises what ended the stream."""
        with self._changed:
            if self._frames:
                assert self._info is not None
                frame = self._frames.popleft()
                self._make_room()
                return Piece(frame, self._info)
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return None

    def opened(self) -> StreamInfo:
        while self._info is None:
            if self.over:
                self.take()
                raise StreamencError("the stream was closed before anything was known of it")
            self.wait()
        return self._info

    def wait(self) -> None:
        """Until something changed, or for a while."""
        with self._changed:
            if not (self._frames or self.over):
                self._changed.wait(LOOK_SECONDS)

    async def wait_async(self) -> None:
        event = asyncio.Event()
        entry = asyncio.get_running_loop(), event
        with self._changed:
            if self._frames or self.over:
                return
            self._waiting.append(entry)
        try:
            await event.wait()
        finally:
            with self._changed:
                if entry in self._waiting:
                    self._waiting.remove(entry)

    def _put(self, frame: Frame) -> bool:
        """Whether there was room."""
        with self._changed:
            if self._closed:
                return True
            if len(self._frames) >= self._capacity:
                if not self._source.live:
                    return False
                self._drop_oldest(frame)
            else:
                self._frames.append(frame)
            self._notify()
            return True

    def _drop_oldest(self, frame: Frame) -> None:
        """For `frame`; the next one of its track is flagged."""
        lost = self._frames.popleft()
        self.dropped += 1
        self._frames.append(frame)
        for place, after in enumerate(self._frames):
            if after.track == lost.track:
                self._frames[place] = after.with_(discontinuity=True)
                return

    def _notify(self) -> None:
        """Wakes all that wait; with the lock."""
        self._changed.notify_all()
        for loop, event in self._waiting:
            with suppress(RuntimeError):  # it was closed, and nobody waits there any more
                loop.call_soon_threadsafe(event.set)
        self._waiting.clear()

    def _make_room(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._room.set)


def _run(graph: Graph, handover: _Handover) -> None:
    """The thread: neither it nor what it holds knows the Subscription, so that it can be freed."""
    try:
        graph.run_blocking(handle_signals=False)
    except NodeError as error:
        handover.finish(error.reason)
    except BaseException as error:  # raised again where the stream is read
        handover.finish(error)
    else:
        handover.finish(None)


def _end(graph: Graph, handover: _Handover, thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:  # a fork, where a lock may be held that nobody will free
        return
    handover.close()
    if thread is threading.current_thread():
        graph.stop()
        return
    # Asks, then cancels, then leaves behind what does not return.
    for _ in range(3):
        if not thread.is_alive():
            return
        graph.stop()
        thread.join(CLOSE_SECONDS)
    log.warning("%s did not end in time and was left behind", thread.name)
