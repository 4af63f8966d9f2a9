"""RemoteSession: one live stream on an engine in another process; without torch."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streamenc.engine.remote.protocol import Array, sendable
from streamenc.engine.remote.remotecalls import RemoteSeat
from streamenc.errors import InputError, SnapshotError

if TYPE_CHECKING:
    from streamenc.engine.remote.remoteengine import RemoteEngine


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
            await asyncio.shield(opened)
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
