"""Service: what one I/O process of a server holds: its engines, its streams, its limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from zmq import ZMQError

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.errors import (
    EngineFull,
    InputError,
    SnapshotError,
    StreamencError,
    TransportError,
    UsageError,
)
from streamenc.io.network.websocket.livemessages import (
    GoAway,
    Open,
    Resume,
)
from streamenc.serve.limits import KeyFull, Limits
from streamenc.serve.meter import Meter
from streamenc.serve.streams.livestream import LiveStream
from streamenc.serve.streams.sessionstore import SessionStore, key_of
from streamenc.serve.streams.streamparts import StreamParts
from streamenc.serve.streams.streamrecord import StreamRecord, read_record
from streamenc.serve.tally import Tally

logger = logging.getLogger(__name__)

SECRET_BYTES = 24
# An engine whose process ends is noticed at once; one that lives may have a very busy machine.
SILENT_SECONDS = 10.0
RETRY_SECONDS, LOOK_SECONDS = 0.2, 1.0
COMPLAIN_SECONDS = 10.0


class Ending(TransportError):
    """The server ends, and takes no new streams."""


class UnknownModel(UsageError):
    """No engine here has a model of that name, in that direction."""


class Expired(UsageError):
    """There is no stream of that token, or not any more."""


class Service:
    """The streams of one process, on the engines at `addresses`; used from one event loop.

    Args:
        addresses: Of the engines, as RemoteEngine takes them.
        store: Where streams are written, for other processes to go on with; None for nowhere.
        worker: What tokens of streams of this process begin with.
        tally: Counts streams of a key, with those of other processes.

    Attributes:
        draining: Why no new streams are taken; "" while they are.
        streams: Those of this process, by the hash of their tokens.
        closers: Awaited at the end, when no stream is left.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits | None = None,
        *,
        store: SessionStore | None = None,
        worker: str = "0",
        meter: Meter | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.store, self.worker = store, worker
        self.meter = meter or Meter()
        self.tally = tally or Tally()
        self.draining = ""
        self.streams: dict[str, LiveStream] = {}
        self._closed: dict[str, LiveStream] = {}  # of which the client may lack the end
        self._opening: Counter[str] = Counter()  # by their owners
        self._resuming: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._engines: dict[str, RemoteEngine | None] = dict.fromkeys(addresses)
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self._complained = 0.0

    async def start(self) -> None:
        """Connects to the engines, in the background, and again whenever one is gone."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._connected(address)) for address in self._engines]
        self._tasks.append(loop.create_task(self._look()))

    async def aclose(self) -> None:
        """Ends all; streams that are live are written to the store."""
        self.draining = self.draining or "the server ends"
        streams = list(self.streams.values())
        self.streams.clear()
        await asyncio.gather(*(stream.aclose(keep=True) for stream in streams))
        for closer in self.closers:
            await closer()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._closing, return_exceptions=True)
        for engine in self.engines:
            engine.close()
        if self.store is not None:
            await self.store.aclose()

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # ----- what there is

    @property
    def engines(self) -> list[RemoteEngine]:
        """Those that answer."""
        return [engine for engine in self._engines.values() if engine and not engine.ended]

    @property
    def ready(self) -> bool:
        """Whether all engines answer, with warm models, and new streams are taken."""
        return not self.draining and len(self.engines) == len(self._engines)

    @property
    def full(self) -> bool:
        """Whether a new stream would be refused."""
        room = any(engine.free > 0 for engine in self.engines)
        return not room or self._count >= self.limits.sessions

    def models(self) -> list[RemoteModel]:
        """What can be asked for now."""
        found = {
            (model.public_name, model.decode): model
            for engine in self.engines
            for model in engine.models
        }
        return list(found.values())

    def model(self, name: str, *, decode: bool = False) -> RemoteModel:
        """Raises UnknownModel where it is not there."""
        return self._found(name, decode)[0]

    def engine(self, name: str, *, decode: bool = False) -> RemoteEngine:
        """Of those that serve it, the one with the most places free. Raises as `model`."""
        return self._found(name, decode)[1]

    def streams_of(self, owner: str) -> int:
        """How many streams of one key are here."""
        mine = sum(stream.owner == owner for stream in self.streams.values())
        return mine + self._opening[owner]

    # ----- streams

    async def open(
        self, asked: Open, owner: str = "", *, snapshot: bytes | None = None
    ) -> LiveStream:
        """A new stream.

        Args:
            owner: The name of the key that asks; "" for none.
            snapshot: What a stream left, here or at another server, to go on from.

        Raises:
            EngineFull: Where all places are taken.
            Ending: Where the server ends.
            TransportError: Where no engine answers just now.
            SnapshotError: For a snapshot of another model.
            UsageError, InputError, FitError: Where what was asked for is not there.
        """
        if self.draining:
            raise Ending(f"{self.draining}; open a stream at another server, or in a moment")
        if self._count >= self.limits.sessions:
            raise EngineFull(self.limits.sessions)
        most = self.limits.sessions_per_key
        if owner and most and not self.tally.take(owner, self.streams_of(owner), most):
            raise KeyFull(most)
        record = None if snapshot is None else read_record(snapshot)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._opening[owner] += 1
        try:
            stream = await self._opened(asked, owner, secret, 1)
            if record is not None:
                await self._restored(stream, record, numbered=False)
            await self._started(stream)
        finally:
            self._opening -= Counter((owner,))
        self.streams[key_of(secret)] = stream
        self.meter.opened(stream.opened.model, asked.direction)
        return stream

    async def resume(self, asked: Resume, owner: str = "") -> LiveStream:
        """A stream that lost its client, of this process or from the store.

        Raises:
            Expired: Where there is none of this token, or of this owner.
            EngineFull, TransportError: As for `open`; it may be asked for again.
        """
        secret = asked.token.rpartition(".")[2]
        key = key_of(secret)
        # Two connections may ask for one stream at once: the second finds that of the first.
        lock = self._resuming.setdefault(key, asyncio.Lock())
        async with lock:
            stream = self.streams.get(key) or self._closed.get(key)
            if stream is not None and stream.ended in ("", "closed"):
                if stream.owner != owner:
                    raise Expired("there is no stream of this token")
                if stream.ended or await stream.is_ours():
                    return stream
                stream.end("taken_over", "another server has resumed this stream")
            if stream is not None:
                await self.forget(stream)
            return await self._claimed(key, secret, owner)

    async def _claimed(self, key: str, secret: str, owner: str) -> LiveStream:
        """A stream of the store."""
        if self.draining:
            raise Ending(f"{self.draining}; resume at another server, or in a moment")
        if not self.engines:
            raise TransportError("no engine answers just now; try again in a moment")
        claimed = None if self.store is None else await self.store.claim(key)
        if claimed is None:
            raise Expired(
                "there is no stream of this token any more; open a new one. They are kept for "
                f"{self.limits.resume_seconds:g} s without a connection"
            )
        epoch, blob = claimed
        record = read_record(blob)
        if record.owner != owner:
            raise Expired("there is no stream of this token")
        self._opening[owner] += 1
        try:
            stream = await self._opened(record.asked, owner, secret, epoch, record.session)
            await self._restored(stream, record, numbered=True)
            await self._started(stream)
        finally:
            self._opening -= Counter((owner,))
        self.streams[key] = stream
        self.meter.came_back(stream.opened.model, stream.opened.direction)
        return stream

    async def forget(self, stream: LiveStream) -> None:
        """Ends a stream; where its client had closed it, the end may be lost on its way: what was
        not acknowledged is kept for a while, and no place on the engine."""
        key = key_of(stream.token.rpartition(".")[2])
        lacks = stream.ended == "closed" and stream.outbox.received < stream.outbox.next
        stream.end("closed", "it was closed")
        if self.streams.get(key) is stream:
            del self.streams[key]
            self.meter.ended(stream.opened.model, stream.opened.direction, stream.ended)
            if lacks and not stream.attached:
                self._closed[key] = stream
                while len(self._closed) > self.limits.sessions:
                    del self._closed[next(iter(self._closed))]
        elif not lacks:
            self._closed.pop(key, None)
        await stream.aclose()

    async def let_go(self, key: str) -> None:
        """Another server wants a stream of this one: it is written down, and no more here."""
        stream = self.streams.pop(key, None)
        if stream is not None:
            self.meter.ended(stream.opened.model, stream.opened.direction, "taken_over")
            await stream.aclose(keep=True)

    async def drain(self, seconds: float, why: str = "the server ends") -> None:
        """Takes no new streams, tells all clients to go, and writes what is left to the store.

        It returns when no stream is left, in `seconds` at the latest.
        """
        loop = asyncio.get_running_loop()
        self.draining = why
        until = loop.time() + seconds
        for stream in self.streams.values():
            stream.notify(GoAway(seconds, why))
        while self.streams and loop.time() < until:
            if not any(stream.attached for stream in self.streams.values()):
                break
            await asyncio.sleep(0.05)
        streams = list(self.streams.values())
        self.streams.clear()
        await asyncio.gather(*(stream.aclose(keep=True) for stream in streams))

    def complain(self, error: Exception) -> None:
        """Says what went wrong in the background, not more often than every ten seconds."""
        now = time.monotonic()
        if now >= self._complained:
            self._complained = now + COMPLAIN_SECONDS
            logger.warning("%s", error)

    # ----- inside

    @property
    def _count(self) -> int:
        return len(self.streams) + self._opening.total()

    def _found(self, name: str, decode: bool) -> tuple[RemoteModel, RemoteEngine]:
        """On the engine that has the most places free."""
        best: tuple[RemoteModel, RemoteEngine] | None = None
        for engine in self.engines:
            for model in engine.models:
                if name in (model.name, model.public_name) and model.decode == decode:
                    if best is None or engine.free > best[1].free:
                        best = model, engine
        if best is not None:
            return best
        if not self.engines:
            raise TransportError("no engine answers just now; try again in a moment")
        there = sorted({m.public_name for m in self.models() if m.decode == decode})
        raise UnknownModel(
            f"there is no {'decoder' if decode else 'encoder'} {name[:80]!r} here; there are "
            f"{', '.join(there) or 'none'}"
        )

    async def _opened(
        self, asked: Open, owner: str, secret: str, epoch: int, session: str = ""
    ) -> LiveStream:
        model, engine = self._found(asked.model, asked.direction == "decode")
        parts = await StreamParts.made(asked, model, engine, self.limits)
        session = session or f"s-{secrets.token_hex(4)}"
        token = f"{self.worker}.{secret}"
        told = parts.opened(session, token, self.limits, stored=self.store is not None)
        return LiveStream(self, parts, told, owner=owner, key=key_of(secret), epoch=epoch)

    async def _restored(self, stream: LiveStream, record: StreamRecord, *, numbered: bool) -> None:
        try:
            await stream.restore(record, numbered=numbered)
        except (SnapshotError, InputError) as error:
            await stream.aclose()
            raise SnapshotError(str(error)) from None
        except BaseException:  # a cancellation among them: the places are given back
            stream.end("engine_gone", "the engine ended")  # and what is in the store stays
            await stream.aclose()
            raise

    async def _started(self, stream: LiveStream) -> None:
        try:
            await stream.start()
        except BaseException:  # as above
            stream.end("engine_gone", "the engine ended")
            await stream.aclose()
            raise

    async def _connected(self, address: str) -> None:
        """Keeps a connection to one engine."""
        while True:
            engine = self._engines[address]
            if engine is None or engine.ended:
                self._engines[address] = None
                try:
                    engine = await RemoteEngine.connect(address, timeout_seconds=SILENT_SECONDS)
                    # From its first call on it hears what the engine tells: of its end, and of
                    # places that others take.
                    await engine.fresh_statistics()
                    self._engines[address] = engine
                except (StreamencError, OSError, ZMQError):
                    pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self) -> None:
        """Ends what nobody came back to, or what is too old."""
        loop = asyncio.get_running_loop()
        next_sweep = loop.time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for stream in list(self.streams.values()):
                gone = stream.detached_at
                if gone is not None and now - gone > self.limits.resume_seconds:
                    self._end(stream, "expired", "nobody came back to it")
                elif self.limits.max_seconds and now - stream.born > self.limits.max_seconds:
                    self._end(
                        stream, "too_long", f"a stream lasts {self.limits.max_seconds:g} s at most"
                    )
                elif stream.ended not in ("", "closed") and not stream.attached:
                    self._end(stream, stream.ended, "")
                else:
                    stream.look()
            for key, stream in list(self._closed.items()):
                gone = stream.detached_at
                if gone is not None and now - gone > self.limits.resume_seconds:
                    del self._closed[key]
            if self.store is not None and now >= next_sweep:
                next_sweep = now + max(10.0, self.limits.resume_seconds)
                kept = self.limits.resume_seconds + 3 * self.limits.checkpoint_seconds
                with contextlib.suppress(StreamencError):
                    await self.store.sweep(kept + 60.0)

    def _end(self, stream: LiveStream, code: str, message: str) -> None:
        stream.end(code, message)
        task = asyncio.get_running_loop().create_task(self.forget(stream))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
