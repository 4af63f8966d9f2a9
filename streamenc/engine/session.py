"""Session: one live stream on an engine."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from streamenc.engine.exchange.loopoutlet import LoopOutlet
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.scheduler import Scheduler
from streamenc.engine.seats import Request, Seat
from streamenc.errors import UsageError

if TYPE_CHECKING:
    from streamenc.engine.engine import Engine


# Calls of one session that wait for their answers: far more than anybody has who awaits them.
MAX_CALLS = 256


class Session:
    """One live stream on an engine. Calls of one session are awaited one after the other; where 256
    wait, the next one raises UsageError.

    A context manager: leaving it gives the place back; a session that is dropped without gives it
    back when it is collected, with a ResourceWarning. Where the caller of a step is cancelled (by a
    time limit, say), the step still runs, and its output comes in front of the next call's.
    """

    def __init__(self, engine: Engine, seat: Seat) -> None:
        self._engine = engine
        self._scheduler = engine._scheduler
        self._seat = seat
        self._outlet: LoopOutlet | None = None
        self._calls = 0
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

    async def step(self, chunk: Any) -> Output:
        """The next items, any number of them; see Stream.push.

        A numpy array may be filled anew as soon as this waits. What an earlier call, cancelled, had
        asked for with another number of codebooks comes with the fewer of the two.

        Returns:
            (1, channels, items), possibly with no items: a numpy array, of codes in the type that
            recordings have; where codes come with a scale, ScaledCodes.
        """
        return await self._output(None, chunk)

    async def flush(self) -> Output:
        """The stream's end; see Stream.flush. The session may go on with a new stream."""
        return await self._output(self._seat.stream.flush)

    async def snapshot(self) -> bytes:
        """See Stream.snapshot."""
        blob: bytes = await self._submitted(self._seat.stream.snapshot)
        return blob

    async def restore(self, blob: bytes) -> None:
        """See Stream.restore."""
        await self._submitted(lambda: self._seat.stream.restore(blob))

    def close(self) -> None:
        """Gives the place back; may be called twice. Steps from then on raise UsageError."""
        self._dropped.detach()
        self._scheduler.close(
            self._seat, "this session is closed and its place given back; open another one"
        )

    def _submitted(self, call: Callable[[], Any] | None, chunk: Any = None) -> asyncio.Future[Any]:
        seat = self._seat
        if seat.closed:
            raise UsageError(seat.closed)
        # Those whose callers were cancelled are among the second.
        if max(self._calls, len(seat.requests)) >= MAX_CALLS:
            raise UsageError(
                f"this session has {MAX_CALLS} calls that wait: await one before the next"
            )
        outlet = self._outlet
        if outlet is None or outlet.loop is not asyncio.get_running_loop():
            outlet = self._outlet = self._engine._outlets.here()
        done = outlet.future()
        staged = seat.staging.staged(chunk) if call is None else None
        self._scheduler.submit(Request(seat, outlet, done, call=call, chunk=chunk, staged=staged))
        self._calls += 1
        done.add_done_callback(self._answered)
        return done

    def _answered(self, done: asyncio.Future[Any]) -> None:
        self._calls -= 1

    async def _output(self, call: Callable[[], Any] | None, chunk: Any = None) -> Output:
        done = self._submitted(call, chunk)
        try:
            output: Output = await done
        except asyncio.CancelledError:
            if not done.cancelled() and done.exception() is None:
                # Cancelled in the moment between the answer and our taking it.
                self._seat.unclaimed.insert(0, done.result())
            raise
        return output


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
