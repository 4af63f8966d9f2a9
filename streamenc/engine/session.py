"""Engine and Session: the only place where asyncio meets torch.

One long-lived worker thread owns the device and runs every step; the event loop only waits. Many
sessions share one engine and one set of weights, each with a state of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from streamenc.errors import UsageError
from streamenc.models.base import Model, Signal, concatenate
from streamenc.stream import Stream

T = TypeVar("T")


class Engine:
    """Runs the steps of all its sessions on one worker thread, in the order they were asked for.

    Use as a context manager, or call `close`.

    max_sessions  How many may be open at once; `open` raises UsageError beyond that.
    """

    def __init__(self, *, max_sessions: int = 64) -> None:
        self.max_sessions = max_sessions
        self._open: set[Session] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="streamenc-engine")

    def open(self, model: Model, *, hops: int = 1, codebooks: int | None = None) -> Session:
        """A new session through `model`, from a fresh state."""
        session = Session(self, Stream(model, hops=hops, codebooks=codebooks))
        self._check_open()
        with self._lock:
            if len(self._open) >= self.max_sessions:
                raise UsageError(
                    f"all {self.max_sessions} sessions of this engine are open; close one, or open "
                    "the engine with a higher max_sessions"
                )
            self._open.add(session)
        return session

    @property
    def sessions(self) -> int:
        """Sessions that are open now."""
        return len(self._open)

    def close(self) -> None:
        """Ends the worker once the step in flight is done; what still waits raises UsageError.

        May be called twice. It waits for that step: on an event loop, use `aclose`.
        """
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._open.clear()

    async def aclose(self) -> None:
        """`close`, without holding up the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` on the worker. Raises UsageError once the engine is closed."""
        return await self._submit(fn, *args)

    def _submit(self, fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        self._check_open()
        return asyncio.ensure_future(self._settled(self._worker.submit(fn, *args)))

    async def _settled(self, done: concurrent.futures.Future[T]) -> T:
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if done.cancelled() and self._closed:
                raise UsageError("this engine was closed before it came to this step") from None
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this engine is closed; open another one")

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._open.discard(session)


class Session:
    """One live stream on an engine. Calls of one session are awaited one after the other.

    A context manager: leaving it gives the place back. Where the caller of a step is cancelled (by
    a time limit, say), the step still runs, and its output comes in front of the next call's.
    """

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream
        self._closed = False
        self._unclaimed: list[asyncio.Future[Signal]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def codebooks(self) -> int | None:
        return self._stream.codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        self._stream.codebooks = codebooks

    async def step(self, chunk: Any) -> Signal:
        """The next items, any number; see Stream.push."""
        return await self._output(self._stream.push, chunk)

    async def flush(self) -> Signal:
        """The stream's end; see Stream.flush. The session may go on with a new stream."""
        return await self._output(self._stream.flush)

    async def snapshot(self) -> bytes:
        """See Stream.snapshot."""
        return await self._run(self._stream.snapshot)

    async def restore(self, blob: bytes) -> None:
        """See Stream.restore."""
        await self._run(self._stream.restore, blob)

    def close(self) -> None:
        """Gives the place back; may be called twice. Steps from then on raise UsageError."""
        self._closed = True
        self._engine._forget(self)

    async def _run(self, fn: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return await self._engine.run(fn, *args)

    async def _output(self, fn: Callable[..., Signal], *args: Any) -> Signal:
        self._check_open()
        done = self._engine._submit(fn, *args)
        try:
            signal = await asyncio.shield(done)
        except asyncio.CancelledError:
            self._unclaimed.append(done)
            raise
        unclaimed, self._unclaimed = self._unclaimed, []
        earlier = await asyncio.gather(*unclaimed, return_exceptions=True)
        # A chunk that was refused left the stream as it was, and its caller has gone.
        kept = [output for output in earlier if not isinstance(output, BaseException)]
        return concatenate([*kept, signal])

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this session is closed and its place given back; open another one")
