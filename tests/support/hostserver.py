"""A server in this process that many hostile clients are let at, with a neighbour that counts.

The app is called without sockets, so that a case takes milliseconds. After each case the neighbour,
a client that was there before, sends a hop of sound and gets the codes of a stream that runs alone.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import streamenc
from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.io.network import wire
from streamenc.io.network.websocket.livemessages import SUBPROTOCOL
from streamenc.serve.application import application
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.site import Site
from tests.support.pipes import until

T = TypeVar("T")
PLACES = 32
HOP = 480
# A client that is not answered within them was forgotten.
SECONDS = 15.0
LIMITS = Limits(
    resume_seconds=0.1,
    idle_seconds=0,  # the neighbour may wait for long until another case comes
    handshake_seconds=2,
    max_message_bytes=2**16,
    max_queued_bytes=2**18,
    max_body_bytes=2**22,
    max_body_seconds=60,
    room_wait_seconds=0.1,
    rooms=8,
    peers=4,
)


class Complaints(logging.Handler):
    """What is logged as an error: something that the server did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            said += f": {record.exc_info[1]!r}"
        self.lines.append(said)


class AppSocket:
    """A WebSocket to the app, without a network between.

    Attributes:
        texts, packets: That came.
        denied: The status of an HTTP answer instead; 0 where it was accepted.
        closed: The code of the server's close.
    """

    def __init__(
        self, app: Any, path: str, query: str = "", subprotocols: Iterable[str] = (SUBPROTOCOL,)
    ) -> None:
        self.texts: list[str] = []
        self.packets: list[bytes] = []
        self.denied = 0
        self.closed: int | None = None
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._came = asyncio.Event()
        self._in.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode("utf-8", "surrogateescape"),
            "headers": [(b"host", b"test")],
            "subprotocols": list(subprotocols),
            "client": ("127.0.0.1", 9),
            "server": ("127.0.0.1", 80),
            "extensions": {"websocket.http.response": {}},
        }
        self.task = asyncio.create_task(app(scope, self._in.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "websocket.send" if message.get("bytes") is not None:
                self.packets.append(message["bytes"])
            case "websocket.send":
                self.texts.append(message["text"])
            case "websocket.close":
                self.closed = message.get("code", 1000)
            case "websocket.http.response.start":
                self.denied = message["status"]
        self._came.set()

    def send(self, message: str | bytes) -> None:
        kind = "bytes" if isinstance(message, bytes) else "text"
        self._in.put_nowait({"type": "websocket.receive", kind: message})

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            self._came.clear()
            await self._came.wait()

    async def leave(self) -> None:
        """The client goes; waits until the server has seen it. Raises what its handler raises."""
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1005, "reason": ""})
        await self.task


@dataclass
class Answer:
    """What the app answered to a request.

    Attributes:
        whole: Whether the body came to its end; an answer that is broken off does not.
    """

    status: int
    body: bytes
    whole: bool

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


async def requested(
    app: Any,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> Answer:
    """A request to the app, without a network between. Raises what its handler raises."""
    sent = asyncio.Queue[dict[str, Any]]()
    half = len(body) // 2
    for piece, more in ((body[:half], True), (body[half:], False)):
        sent.put_nowait({"type": "http.request", "body": piece, "more_body": more})
    answer = Answer(0, b"", False)

    async def take(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
        else:
            answer.body += message.get("body", b"")
            answer.whole = not message.get("more_body", False)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "query_string": query.encode(errors="replace"),
        "headers": [
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in (("host", "test"), *headers)
        ],
        "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, sent.get, take)
    return answer


class Neighbour:
    """A stream of nano that was there before."""

    def __init__(self, app: Any, codec: streamenc.Codec) -> None:
        self._socket = AppSocket(app, "/v1/stream")
        self._alone = codec.stream()
        self._rng = np.random.default_rng(0)
        self._seq = self._items = 0
        self._wanted = np.zeros((1, 0, 0), np.int64)

    async def begin(self) -> None:
        self._socket.send('{"type": "open", "model": "nano", "format": "f32", "window": 0}')
        await self._socket.until(lambda: self._socket.texts)
        assert '"opened"' in self._socket.texts[0], self._socket.texts

    async def check(self) -> None:
        """Raises AssertionError where it does not get what is its."""
        samples = self._rng.normal(0, 0.1, (1, HOP)).astype(np.float32)
        self._socket.send(wire.encode_samples(samples, self._seq, self._seq * HOP, 0))
        self._seq += 1
        wanted = self._alone.push(samples).numpy()[0]
        self._items += wanted.shape[1]
        try:
            async with asyncio.timeout(SECONDS):
                await self._socket.until(lambda: self._frames() >= self._items)
        except TimeoutError:
            raise AssertionError(f"the neighbour got {self._frames()} of {self._items}") from None
        packets = [wire.decode(packet) for packet in self._socket.packets]
        got = [packet.data for packet in packets if isinstance(packet, wire.Data)]
        self._socket.packets.clear()
        self._items = 0
        if got or wanted.shape[1]:
            assert np.array_equal(np.concatenate(got, -1), wanted), "a neighbour's codes are wrong"

    def _frames(self) -> int:
        assert self._socket.closed is None, f"the neighbour was closed: {self._socket.texts[-1]}"
        packets = (wire.decode(packet) for packet in self._socket.packets)
        return sum(p.data.shape[-1] for p in packets if isinstance(p, wire.Data))


class HostServer:
    """An engine of nano behind its door, a service, the app, and its loop in a thread."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="hostserver-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.codec = streamenc.load("nano", backend="torch")
        self.engine = Engine(max_sessions=PLACES, max_wait_ms=1)
        self.engine.warm_blocking(self.codec.encoder)
        self.door = EngineServer(self.engine, {"nano": self.codec}, f"ipc://{folder}/engine")
        self.complaints = Complaints()
        logging.getLogger("streamenc").addHandler(self.complaints)
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self._begin())
        atexit.register(self._end)

    async def _begin(self) -> None:
        service = await self._stack.enter_async_context(Service([self.door.address], LIMITS))
        await until(lambda: service.ready)
        self.app = application(Site(service, meter=service.meter))
        self.neighbour = Neighbour(self.app, self.codec)
        await self.neighbour.begin()

    def _end(self) -> None:
        # Not the service, in order: Python has closed the threads by now that it would use.
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        host_server.cache_clear()
        self.door.close()
        self.engine.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it on the server's loop, for as long as anything may take."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * SECONDS)

    def visited(self, visit: Callable[[], Awaitable[T]]) -> T:
        """What a hostile client's visit gives, when the neighbour has its codes behind it.

        Raises AssertionError for what the server logs as an error, and for what harms a neighbour.
        """

        async def both() -> T:
            async with asyncio.timeout(SECONDS):
                found = await visit()
            await self.neighbour.check()
            return found

        self.complaints.lines.clear()
        found = self.call(both())
        assert not self.complaints.lines, self.complaints.lines
        return found


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=2)


@cache
def host_server() -> HostServer:
    """One for all targets of a process."""
    return HostServer()
