"""Engine: the only place where asyncio meets torch.

One long-lived worker thread owns the device and runs every step; the event loop only waits. Many
sessions share one engine and one set of weights, each with a state of its own.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

from streamenc.engine.exchange.door import Batch, Outlet
from streamenc.engine.exchange.loopoutlet import LoopOutlets
from streamenc.engine.exchange.staging import Staging
from streamenc.engine.scheduler import Scheduler
from streamenc.engine.seats import Request, Seat, requests_of
from streamenc.engine.session import Session
from streamenc.engine.statistics import EngineStatistics
from streamenc.errors import EngineFull, UsageError
from streamenc.models.model import Model
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

    Use as a context manager, or call `close`. A fork of its process cannot use it, and says so.

    Args:
        max_sessions: How many may be open at once; `open` raises EngineFull beyond that. Memory for
            so many is reserved once two sessions of a model are under way; see Lanes.
        max_wait_ms: The longest that a hop waits for those of other sessions; 0 for not at all.
        idle_timeout_seconds: A session that nobody calls for so long is closed; None for never.
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
        self._outlets = LoopOutlets()
        self._staging: weakref.WeakKeyDictionary[Model, Staging] = weakref.WeakKeyDictionary()
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

        Args:
            model: An encoder or decoder: `codec.encoder`.
            hops: Hops a step: 1 for live streams. With more, which suits files, it runs alone.
            codebooks: How many come out; None for all.

        Raises:
            EngineFull: Where `max_sessions` are open.
            UsageError: Where the engine is closed, or this is a fork of its process.
        """
        return Session(self, self.seat(model, hops=hops, codebooks=codebooks))

    def seat(self, model: Model, *, hops: int = 1, codebooks: int | None = None) -> Seat:
        """A place for a stream, as `open` takes one, for batches: for who serves many streams from
        any thread, without coroutines. `give_up` gives it back.

        Raises:
            EngineFull, UsageError: As for `open`.
        """
        scheduler = self._scheduler
        scheduler.check_process()
        staging = self._staging.get(model)
        if staging is None:
            staging = self._staging.setdefault(model, Staging(model))
        seat = Seat(Stream(model, hops=hops, codebooks=codebooks), staging)
        with self._lock:
            scheduler.check_open()
            if len(scheduler.open) >= self.max_sessions:
                scheduler.meter.refused += 1
                raise EngineFull(self.max_sessions)
            scheduler.open.add(seat)
            scheduler.meter.opened += 1
        return seat

    def submit(self, batch: Batch) -> None:
        """Chunks of many seats at once, from any thread; each is answered as a call of
        `Session.step` would be, to the batch's outlet.

        Raises:
            UsageError: Where the engine is closed, or seats, chunks and tags are not as many.
        """
        if not len(batch.seats) == len(batch.chunks) == len(batch.tags):
            raise UsageError(
                f"got {len(batch.seats)} seats, {len(batch.chunks)} chunks and {len(batch.tags)} "
                "tags; wanted as many of each"
            )
        self._scheduler.submit(requests_of(batch))

    def ask(self, seat: Seat, call: Callable[[Stream], Any], tag: Any, outlet: Outlet) -> None:
        """Has a seat's stream called once its chunks are through, on the worker, from any thread:
        `Stream.flush`, `Stream.snapshot`. A signal is answered as an output of numpy arrays.

        Raises:
            UsageError: Where the engine is closed.
        """
        self._scheduler.submit(Request(seat, outlet, tag, call=lambda: call(seat.stream)))

    def give_up(self, seat: Seat, why: str) -> None:
        """Gives a seat's place back, from any thread, also twice; its calls from then on, and those
        that still wait, are answered by a UsageError of `why`."""
        self._scheduler.close(seat, why)

    async def warm(
        self, model: Model, *, codebooks: int | None = None, sessions: int | None = None
    ) -> None:
        """Does now what would take long in the middle of live streams; before the first one.

        On a GPU it captures the step and the quantiser as CUDA graphs, for each number of streams
        that may step at once, which takes seconds: sizes without a graph run operator by operator,
        and `statistics` says so. On any device the first steps are made that let libraries choose
        their kernels, and an ONNX step is opened. Memory for `max_sessions` streams is reserved on
        a GPU, and kept until the engine is closed, also while no session is open.

        Sessions that are open go on meanwhile, held up by one capture at a time.

        Args:
            model: An encoder or decoder.
            codebooks: The most that any session will ask for; None for all.
            sessions: The most that will be open at once; None for `max_sessions`.

        Raises:
            InputError: Where the model has no such number of codebooks.
            UsageError: Where the engine is closed, or `sessions` is below 1.
        """
        if sessions is not None and sessions < 1:
            raise UsageError(f"got sessions={sessions}; wanted at least 1, or None")
        if codebooks is not None:
            model.check_codebooks(codebooks)
        scheduler = self._scheduler
        for lanes in await self.run(scheduler.warm, model, codebooks, sessions):
            await self.run(scheduler.warm_lanes, model, lanes, codebooks)

    def warm_blocking(
        self, model: Model, *, codebooks: int | None = None, sessions: int | None = None
    ) -> None:
        """`warm`, for a thread without an event loop, as before `asyncio.run`.

        Raises:
            UsageError: In an event loop that runs already, as in a notebook; and as `warm`.
        """
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise UsageError(
                "warm_blocking starts an event loop, and one runs here already, as in a notebook "
                "or a coroutine: write `await engine.warm(model)`"
            )
        asyncio.run(self.warm(model, codebooks=codebooks, sessions=sessions))

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
        outlet = self._outlets.here()
        done = outlet.future()
        # It may be cancelled before its turn.
        self._scheduler.submit(
            Request(None, outlet, done, call=lambda: None if done.cancelled() else fn(*args))
        )
        result: T = await done
        return result


def _end(scheduler: Scheduler, worker: threading.Thread) -> None:
    scheduler.end()
    if threading.current_thread() is not worker:
        worker.join()
