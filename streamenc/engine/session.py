"""Engine and Session: the only place where asyncio meets torch.

One long-lived worker thread owns the device and runs every step; the event loop only waits. Many
sessions share one engine and one set of weights, each with a state of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from streamenc.errors import UsageError
from streamenc.models.base import Model, Signal
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
        """Ends the worker once the step in flight is done; what still waits is cancelled.

        May be called twice.
        """
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` on the worker. Raises UsageError once the engine is closed."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._worker, fn, *args)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this engine is closed; open another one")

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._open.discard(session)


class Session:
    """One live stream on an engine. Calls of one session are awaited one after the other."""

    def __init__(self, engine: Engine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream
        self._closed = False

    @property
    def codebooks(self) -> int | None:
        return self._stream.codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        self._stream.codebooks = codebooks

    async def step(self, chunk: Any) -> Signal:
        """The next items, any number; see Stream.push."""
        return await self._run(self._stream.push, chunk)

    async def flush(self) -> Signal:
        """The stream's end; see Stream.flush. The session may go on with a new stream."""
        return await self._run(self._stream.flush)

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
        if self._closed:
            raise UsageError("this session is closed and its place given back; open another one")
        return await self._engine.run(fn, *args)
