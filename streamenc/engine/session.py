"""Engine and Session: the only place where asyncio meets torch.

One long-lived worker thread owns the device and runs every step; the event loop only waits. Many
sessions share one engine and one set of weights, each with a state of its own.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Self, TypeVar

from streamenc.engine.scheduler import Request, Scheduler, Seat
from streamenc.engine.statistics import EngineStatistics
from streamenc.errors import EngineFull, UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.stream import Stream

T = TypeVar("T")


class Engine:
    """Runs the steps of all its sessions on one worker thread, those of one model in batches.

    A batch runs when all streams of a model that are under way have a hop, or the oldest hop has
    waited `max_wait_ms`; a single stream never waits. Several models take turns.

    A session gives what its stream would give alone. On a CPU its neighbours change not even the
    last bit: in one lane of a batch of one size, the numbers are the same. A batch of another size
    may sum its products in another order, so where that changes from step to step, values agree to
    rounding, and a code differs only where two entries are equally near within it.

    Use as a context manager, or call `close`.

    max_sessions  How many may be open at once; `open` raises EngineFull beyond that. Memory for so
                  many is reserved once two sessions of a model are under way; see Lanes.
    max_wait_ms   The longest that a hop waits for those of other sessions; 0 for not at all.
    idle_timeout_seconds  A session that nobody calls for so long is closed; None for never.
    """

    def __init__(
        self,
        *,
        max_sessions: int = 64,
        max_wait_ms: float = 5.0,
        idle_timeout_seconds: float | None = None,
    ) -> None:
        timeout_fits = idle_timeout_seconds is None or idle_timeout_seconds > 0
        if max_sessions < 1 or max_wait_ms < 0 or not timeout_fits:
            raise UsageError(
                f"got max_sessions={max_sessions}, max_wait_ms={max_wait_ms:g} and "
                f"idle_timeout_seconds={idle_timeout_seconds}; wanted at least 1, at least 0, and "
                "more than 0 or None"
            )
        self.max_sessions = max_sessions
        self._lock = threading.Lock()
        self._scheduler = Scheduler(max_sessions, max_wait_ms, idle_timeout_seconds)
        # A daemon, for its own good: what ends it where nobody closes the engine, at the latest
        # when Python exits, is the finalizer.
        self._worker = threading.Thread(
            target=self._scheduler.run, name="streamenc-engine", daemon=True
        )
        self._worker.start()
        self._end = weakref.finalize(self, _end, self._scheduler, self._worker)

    def open(self, model: Model, *, hops: int = 1, codebooks: int | None = None) -> Session:
        """A new session through `model`, from a fresh state.

        hops  Hops a step: 1 for live streams. With more, which suits files, it runs alone.
        Raises EngineFull where `max_sessions` are open.
        """
        seat = Seat(Stream(model, hops=hops, codebooks=codebooks))
        scheduler = self._scheduler
        with self._lock:
            self._check_open()
            if len(scheduler.open) >= self.max_sessions:
                scheduler.meter.refused += 1
                raise EngineFull(self.max_sessions)
            scheduler.open.add(seat)
            scheduler.meter.opened += 1
        return Session(self, seat)

    @property
    def sessions(self) -> int:
        """Sessions that are open now."""
        return len(self._scheduler.open)

    def statistics(self) -> EngineStatistics:
        """What the engine has done so far."""
        return self._scheduler.meter.statistics(self.sessions)

    def close(self) -> None:
        """Ends the worker once the step in flight is done; what still waits raises UsageError.

        May be called twice. It waits for that step: on an event loop, use `aclose`.
        """
        self._end()
        self._scheduler.open.clear()

    async def aclose(self) -> None:
        """`close`, without holding up the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` on the worker. Raises UsageError once the engine is closed."""
        request = Request(None, lambda: fn(*args))
        self._scheduler.submit(request)
        result: T = await request.done
        return result

    def _check_open(self) -> None:
        if self._scheduler.closed:
            raise UsageError("this engine is closed; open another one")


class Session:
    """One live stream on an engine. Calls of one session are awaited one after the other.

    A context manager: leaving it gives the place back; a session that is dropped without gives it
    back when it is collected, with a ResourceWarning. Where the caller of a step is cancelled (by a
    time limit, say), the step still runs, and its output comes in front of the next call's.
    """

    def __init__(self, engine: Engine, seat: Seat) -> None:
        self._engine = engine
        self._scheduler = engine._scheduler
        self._seat = seat
        self._dropped = weakref.finalize(self, _drop, self._scheduler, seat)
        self._dropped.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def codebooks(self) -> int | None:
        """How many codebooks come out, from the next call on; None for all."""
        return self._seat.stream.codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        self._seat.stream.codebooks = codebooks

    async def step(self, chunk: Any) -> Signal:
        """The next items, any number; see Stream.push.

        What an earlier call, cancelled, had asked for with another number of codebooks comes with
        the fewer of the two.
        """
        return await self._output(Request(self._seat, None, chunk))

    async def flush(self) -> Signal:
        """The stream's end; see Stream.flush. The session may go on with a new stream."""
        return await self._output(Request(self._seat, self._seat.stream.flush))

    async def snapshot(self) -> bytes:
        """See Stream.snapshot."""
        blob: bytes = await self._submitted(Request(self._seat, self._seat.stream.snapshot))
        return blob

    async def restore(self, blob: bytes) -> None:
        """See Stream.restore."""
        await self._submitted(Request(self._seat, lambda: self._seat.stream.restore(blob)))

    def close(self) -> None:
        """Gives the place back; may be called twice. Steps from then on raise UsageError."""
        self._dropped.detach()
        self._scheduler.close(
            self._seat, "this session is closed and its place given back; open another one"
        )

    def _submitted(self, request: Request) -> asyncio.Future[Any]:
        if self._seat.closed:
            raise UsageError(self._seat.closed)
        self._scheduler.submit(request)
        return request.done

    async def _output(self, request: Request) -> Signal:
        done = self._submitted(request)
        try:
            signal: Signal = await done
        except asyncio.CancelledError:
            if not done.cancelled() and done.exception() is None:
                # Cancelled in the moment between the answer and our taking it.
                self._seat.unclaimed.insert(0, done.result())
            raise
        return signal


def _drop(scheduler: Scheduler, seat: Seat) -> None:
    """A session was collected; it may be in any thread, and in the middle of anything."""
    if seat in scheduler.open:
        scheduler.meter.dropped += 1
        scheduler.close(seat, "this session was dropped")
        warnings.warn(
            f"a session of {seat.stream.model.spec.name} was never closed: use `with`, or close it",
            ResourceWarning,
            stacklevel=2,
        )


def _end(scheduler: Scheduler, worker: threading.Thread) -> None:
    scheduler.end()
    if threading.current_thread() is not worker:
        worker.join()
