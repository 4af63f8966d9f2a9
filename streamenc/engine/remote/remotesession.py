"""RemoteSession: one live stream on an engine in another process; without torch."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from streamenc.engine.remote.protocol import Array, sendable
from streamenc.errors import InputError, SnapshotError, StreamencError

if TYPE_CHECKING:
    from streamenc.engine.remote.remoteengine import RemoteEngine
    from streamenc.engine.remote.remotemodel import RemoteModel


class ScaledArrays(NamedTuple):
    """Codes with the factor that their decoded waveform is multiplied by: Scaled without torch.

    Attributes:
        codes: (batch, codebooks, frames).
        scale: (batch, 1, frames).
    """

    codes: Array
    scale: Array


class RemoteCall:
    """A call that waits for its credit or its answer.

    Attributes:
        what: "step", of `arrays`, or as `Call.what` says; or "open".
        extra: A snapshot, or texts.
    """

    __slots__ = ("arrays", "codebooks", "extra", "future", "nbytes", "seat", "what")

    def __init__(
        self,
        seat: RemoteSeat,
        what: str,
        future: asyncio.Future[Any],
        arrays: Sequence[Array] = (),
        extra: Any = None,
    ) -> None:
        self.seat, self.what, self.future = seat, what, future
        self.arrays, self.extra = arrays, extra
        self.codebooks = seat.codebooks
        self.nbytes = sum(array.nbytes for array in arrays)

    def settle(self, result: Any) -> None:
        """Answers the caller; an output that nobody waits for is kept for the next call."""
        future, seat = self.future, self.seat
        if not isinstance(result, np.ndarray | ScaledArrays):
            if not future.done():
                future.set_result(result)
        elif future.done():
            seat.unclaimed.append(result)
        elif seat.unclaimed:
            earlier, seat.unclaimed = seat.unclaimed, []
            future.set_result(one_after_the_other([*earlier, result]))
        else:
            future.set_result(result)

    def fail(self, error: StreamencError) -> None:
        """Answers the caller, where there is one, that it got nothing."""
        if not self.future.done():
            self.future.set_exception(error)


class RemoteSeat:
    """What the engine's client knows of a session, also where that was dropped.

    Attributes:
        number: By which the client calls it.
        told_codebooks: What the engine knows of its number of codebooks.
        closed: Why it takes no more calls; "" while it is open.
        in_flight: Calls that were sent and not answered.
        waiting: Calls that have no credit yet.
        unclaimed: Outputs of steps whose callers were cancelled.
        opened: The answer to its opening.
    """

    def __init__(self, number: int, model: RemoteModel | None, codebooks: int | None) -> None:
        self.number, self.codebooks, self.told_codebooks = number, codebooks, codebooks
        self._model = model
        self.closed = ""
        self.in_flight = 0
        self.waiting: deque[RemoteCall] = deque()
        self.unclaimed: list[Any] = []
        self.opened: asyncio.Future[None] | None = None

    @property
    def model(self) -> RemoteModel:
        assert self._model is not None  # but for the engine's own
        return self._model


class RemoteSession:
    """One live stream on an engine in another process. As Session, but for this:

    What comes out are numpy arrays, and codes with a volume a pair of them. Whether a place was
    free is known once the engine has answered: `await admitted()`, or the first call, raises
    EngineFull where none was. Where the engine ends, all calls raise TransportError.
    """

    def __init__(self, engine: RemoteEngine, seat: RemoteSeat) -> None:
        self._engine, self._seat = engine, seat
        self._dropped = weakref.finalize(self, _drop, engine, seat)
        self._dropped.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def codebooks(self) -> int | None:
        """How many codebooks come out, from the next call on; None for all."""
        return self._seat.codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        if codebooks is not None:
            self._seat.model.check_codebooks(codebooks)
        self._seat.codebooks = codebooks

    async def admitted(self) -> Self:
        """This session, once its place is sure. Raises EngineFull where there was none."""
        opened = self._seat.opened
        if opened is not None:
            try:
                await asyncio.shield(opened)
            except StreamencError:
                self.close()
                raise
        return self

    async def step(self, chunk: Any) -> Any:
        """The next items, any number; see Stream.push and Session.step."""
        port = self._seat.model.spec.input
        if port.kind == "text" and isinstance(chunk, str | list | tuple):
            return await self._output("texts", extra=_texts(chunk))
        return await self._output("step", arrays=_arrays(chunk))

    async def flush(self) -> Any:
        """The stream's end; see Stream.flush. The session may go on with a new stream."""
        return await self._output("flush")

    async def snapshot(self) -> bytes:
        """See Stream.snapshot."""
        blob: bytes = await self._engine._called(self._seat, "snapshot")
        return blob

    async def restore(self, blob: bytes) -> None:
        """See Stream.restore."""
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise SnapshotError(f"a snapshot is bytes; got a {type(blob).__name__}")
        await self._engine._called(self._seat, "restore", extra=bytes(blob))

    def close(self) -> None:
        """Gives the place back; may be called twice. Calls from then on raise UsageError."""
        self._dropped.detach()
        self._engine._close_seat(
            self._seat, "this session is closed and its place given back; open another one"
        )

    async def _output(self, what: str, arrays: Sequence[Array] = (), extra: Any = None) -> Any:
        answer = self._engine._called(self._seat, what, arrays, extra)
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                # Cancelled in the moment between the answer and our taking it.
                self._seat.unclaimed.insert(0, answer.result())
            raise


def _drop(engine: RemoteEngine, seat: RemoteSeat) -> None:
    """A session was collected; it may be in any thread, and in the middle of anything."""
    if not seat.closed and engine._drop_seat(seat):
        warnings.warn(
            f"a session of {seat.model.spec.name} was never closed: use `with`, or close it",
            ResourceWarning,
            stacklevel=2,
        )


def _texts(chunk: Any) -> list[str]:
    texts = [chunk] if isinstance(chunk, str) else list(chunk)
    if not all(isinstance(text, str) for text in texts):
        raise InputError("got a list of other things than texts; wanted texts, or their tokens")
    return texts


def _arrays(chunk: Any) -> list[Array]:
    """A chunk as arrays that can be sent. Raises InputError for what holds no numbers."""
    if type(chunk) is np.ndarray:
        parts: Sequence[Any] = (chunk,)
    elif isinstance(chunk, tuple) and getattr(chunk, "_fields", ()) == ("codes", "scale"):
        parts = chunk
    else:
        parts = (chunk,)
    try:
        return [sendable(np.asarray(part)) for part in parts]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"got a {type(chunk).__name__}; wanted a tensor, a numpy array or a list of numbers: "
            f"{error}"
        ) from error


def one_after_the_other(outputs: list[Any]) -> Any:
    """Several outputs of one session, of the fewest codebooks that any of them has."""
    some = [y for y in outputs if _values(y).shape[2]]
    if not some:
        return outputs[-1]
    if len(some) == 1:
        return some[0]
    fewest = min(_values(y).shape[1] for y in some)
    whole = np.concatenate([_values(y)[:, :fewest] for y in some], axis=2)
    if isinstance(some[0], ScaledArrays):
        return ScaledArrays(whole, np.concatenate([y.scale for y in some], axis=2))
    return whole


def _values(output: Any) -> Array:
    values: Array = output.codes if isinstance(output, ScaledArrays) else output
    return values
