"""A server of streams that is as small as the protocol lets it be, for tests of clients."""

from __future__ import annotations

import copy
import ssl
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Ack,
    Close,
    Closed,
    Error,
    Flush,
    Flushed,
    FromClient,
    InputFacts,
    Mark,
    Marked,
    Open,
    Opened,
    Resume,
    Resumed,
    Set,
    SnapshotTaken,
    TakeSnapshot,
    WasSet,
    encode_message,
    read_from_client,
)
from streamenc.io.network.wire import (
    Credit,
    Data,
    StreamSnapshot,
    decode,
    encode_credit,
    encode_frame,
    encode_info,
    encode_snapshot,
)

HOP = 4
RATE = 16_000
CODES = StreamInfo(
    "codes", Fraction(1, RATE), Fraction(RATE, HOP), (2, None), "uint16", "stand-in", 65536
)
INFO = encode_info(CODES, 7, 1)


def codes_of(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the stand-in makes of a whole stream: (2, frames)."""
    hops = samples[: len(samples) // HOP * HOP].reshape(-1, HOP).astype(np.int64)
    running = np.cumsum(hops.sum(axis=1))  # so that each code depends on all that came before
    return np.stack([hops[:, 0] % 65536, running % 65536]).astype(np.uint16)


class StandIn:
    """One stream: what comes is fed to `receive`; what goes out is `output`, from `base` on.

    Attributes:
        window: Ordered messages that may be on their way.
        refuses: Numbers of messages that are refused, whatever they are but a mark of the client's
            own in their place.
    """

    def __init__(self, window: int = 4) -> None:
        self.window = window
        self.next_seq = self.pts = self.hops = self.running = 0
        self.samples: list[int] = []
        self.output: list[list[bytes | str]] = []
        self.base = 0
        self.token = 0
        self.bound = 0
        self.closed = False
        self.refuses: set[int] = set()
        self.books = 2

    def opened(self) -> Opened:
        return Opened(
            session="s-1",
            token=f"t{self.token}",
            model="stand-in",
            direction="encode",
            fingerprint="",
            equality="offline",
            input=InputFacts("s16", RATE, 1, (1, RATE)),
            model_rate=RATE,
            lead=HOP,
            hop=HOP,
            delay_ms=0,
            rate=RATE / HOP,
            codebooks=2,
            codebook_size=65536,
            window=self.window,
            max_message_bytes=1024,
            max_queued_bytes=2**20,
            resume_seconds=5,
        )

    def resumed(self, asked: Resume, source: str) -> Resumed:
        self.token += 1
        self.bound = asked.received + asked.window
        return Resumed(
            "s-1",
            f"t{self.token}",
            self.next_seq,
            self.pts,
            asked.received,
            True,
            source,
            self.window,
        )

    def snapshot(self) -> StandIn:
        made = copy.copy(self)
        made.samples, made.output = [*self.samples], [*self.output]
        made.refuses = {*self.refuses}
        return made

    def ack(self) -> Ack:
        return Ack(self.next_seq, self.pts)

    def credit(self) -> bytes:
        return encode_credit(Credit(0, self.next_seq, self.window))

    def receive(self, wire: bytes | str) -> Error | None:
        message: Any = read_from_client(wire) if isinstance(wire, str) else decode(wire)
        if isinstance(message, Credit):
            self.bound = message.received + message.window
            while self.base < message.received and self.output:
                del self.output[0]
                self.base += 1
            return None
        if message.seq != self.next_seq:
            assert message.seq > self.next_seq, "a message came twice"
            return Error("bad_sequence", f"wanted {self.next_seq}", seq=message.seq)
        if message.seq in self.refuses and not (
            isinstance(message, Mark) and "refused" in message.id
        ):
            return Error("bad_packet", "not this one", seq=message.seq)
        self.next_seq += 1
        if isinstance(message, Data):
            self._data(message)
        else:
            self._message(message)
        return None

    @property
    def n(self) -> int:
        return self.base + len(self.output)

    def _data(self, data: Data) -> None:
        assert data.pts == self.pts or data.discontinuity
        self.pts = data.pts + data.duration
        self.samples += data.data[0].tolist()
        while len(self.samples) >= HOP:
            hop, self.samples = self.samples[:HOP], self.samples[HOP:]
            self.running += sum(hop)
            codes = np.array([[hop[0] % 65536], [self.running % 65536]], np.uint16)[: self.books]
            frame = Frame(codes, self.hops * HOP, HOP, self.hops)
            self.output.append([encode_frame(frame, CODES, 7)])
            self.hops += 1

    def _message(self, message: FromClient) -> None:
        pts, n = self.pts, self.n
        match message:
            case Mark():
                out: list[Any] = [encode_message(Marked(message.id, pts, n))]
            case Flush():
                out = [encode_message(Flushed(pts, n))]
            case Set():
                self.books = message.codebooks or 2
                out = [encode_message(WasSet(message.codebooks or None, n))]
            case TakeSnapshot():
                out = [
                    encode_snapshot(StreamSnapshot(0, b"abc")),
                    encode_message(SnapshotTaken(self.next_seq, pts, n, 3)),
                ]
            case Close():
                self.closed = True
                out = [encode_message(Closed(n, self.hops, pts / RATE))]
            case _:
                raise AssertionError(message)
        self.output.append(out)

    def numbered(self, n: int) -> list[bytes | str] | None:
        """Message `n` as it goes out; None where it is not there, or the client has no room."""
        if n >= self.bound or n - self.base >= len(self.output):
            return None
        return self.output[n - self.base]


class StreamServer:
    """Serves one StandIn on a port of its own.

    Attributes:
        stream: The stream, once one was opened.
        kept: What it goes on from where its process died.
        refusing: HTTP status and headers for the next connections, in their order.
        checkpoint: After how many ordered messages the state is kept, and acknowledged.
        connections: How many came so far.
        kill_after: Messages, in both directions together, after which each connection is cut off;
            the next of them, and none where there is no more.
        die: Of each cut, whether the process dies with it; as `kill_after`.
    """

    def __init__(
        self, *, window: int = 4, checkpoint: int = 5, tls: ssl.SSLContext | None = None
    ) -> None:
        self.stream: StandIn | None = None
        self.kept: StandIn | None = None
        self.window, self.checkpoint, self.tls = window, checkpoint, tls
        self.refusing: list[tuple[int, dict[str, str]]] = []
        self.kill_after: list[int] = []
        self.die: list[bool] = []
        self.connections = 0
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.refuses: set[int] = set()
        self.greet: Callable[[ServerConnection], Awaitable[bool]] | None = None
        self._server: Server | None = None
        self._live: set[ServerConnection] = set()

    async def __aenter__(self) -> StreamServer:
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            0,
            subprotocols=[SUBPROTOCOL],
            process_request=self._request,
            compression=None,
            ssl=self.tls,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"wss://localhost:{port}" if self.tls else f"ws://127.0.0.1:{port}"

    def _request(self, socket: ServerConnection, request: Any) -> Any:
        self.headers.append(dict(request.headers.raw_items()))
        self.paths.append(request.path)
        if self.refusing:
            status, headers = self.refusing.pop(0)
            response = socket.respond(status, "not now\n")
            response.headers.update(headers)
            return response
        return None

    def cut(self, socket: ServerConnection, die: bool) -> None:
        """Cuts a connection off in the middle."""
        socket.transport.abort()
        if die:
            self.stream = self.kept.snapshot() if self.kept else None

    def cut_all(self) -> None:
        for socket in self._live:
            self.cut(socket, False)

    async def _handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        self._live.add(socket)
        left = self.kill_after.pop(0) if self.kill_after else None
        die = self.die.pop(0) if self.die else False
        try:
            await self._talk(socket, left, die)
        finally:
            self._live.discard(socket)

    async def _talk(self, socket: ServerConnection, left: int | None, die: bool) -> None:
        if self.greet is not None and await self.greet(socket):
            return
        sent = 0

        async def send(message: bytes | str | msgspec.Struct) -> bool:
            nonlocal left
            if left == 0:
                self.cut(socket, die)
                return False
            if left is not None:
                left -= 1
            if isinstance(message, msgspec.Struct):
                message = encode_message(message)  # type: ignore[arg-type]
            await socket.send(message)
            return True

        first = read_from_client(str(await socket.recv()))
        if isinstance(first, Open):
            self.stream = StandIn(self.window)
            self.stream.refuses = set(self.refuses)
            self.stream.bound = first.window
            self.kept = self.stream.snapshot()
            alive = await send(self.stream.opened())
        else:
            assert isinstance(first, Resume)
            stream = self.stream
            assert stream is not None and first.token.startswith("t")
            sent = first.received
            alive = await send(stream.resumed(first, "memory"))
        stream = self.stream
        alive = alive and await send(INFO)
        while alive:
            while (out := stream.numbered(sent)) is not None:
                for part in out:
                    if not await send(part):
                        return
                sent += 1
            if stream.closed and sent == stream.n:
                await socket.close()
                return
            message = await socket.recv()
            if left == 0:
                self.cut(socket, die)
                return
            if left is not None:
                left -= 1
            if (error := stream.receive(message)) is not None:
                alive = await send(error)
            elif stream.next_seq % self.checkpoint == 0:
                self.kept = stream.snapshot()
                alive = await send(stream.ack())
            alive = alive and await send(stream.credit())
