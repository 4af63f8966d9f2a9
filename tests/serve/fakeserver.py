"""A server of streams that breaks connections at any place of the protocol, for tests of clients.

Its "codec" takes hops of 480 samples and gives four sums of each; its echo is the sound that came.
`?break=5,9` in the address cuts the connection when the stream's fifth and ninth message would be
heard, was heard, or would be sent; `?store` has the stream go on from its last acknowledgement, as
if the process had died; `?again` has it say once more what the client has. The model "forgetful" is
never acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from fractions import Fraction
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network import wire
from streamenc.io.network.websocket import livemessages as say
from streamenc.serve.pageroutes import HEADERS, PAGE, static_files

HOP, RATE, BOOKS, ENTRIES, WINDOW, STREAM = 480, 48_000, 4, 1024, 8, 7
ACK_EVERY = 5  # ordered messages

CODES = StreamInfo(
    kind="codes",
    time_base=Fraction(1, RATE),
    rate=Fraction(RATE, HOP),
    shape=(BOOKS, None),
    dtype="uint16",
    model="fake",
    codebook_size=ENTRIES,
)
SOUND = StreamInfo(
    kind="audio", time_base=Fraction(1, RATE), rate=Fraction(RATE), shape=(1, None), dtype="float32"
)
ECHO = StreamInfo(
    kind="mux",
    time_base=Fraction(1, RATE),
    rate=Fraction(RATE),
    shape=(),
    dtype="",
    tracks=(CODES, SOUND),
)


class Cut(Exception):
    """The connection is to break here."""


def codes_of(samples: np.ndarray) -> np.ndarray:
    """int16 (hops * HOP,) -> uint16 (BOOKS, hops)."""
    hops = samples[: samples.size // HOP * HOP].astype(np.int64).reshape(-1, HOP)
    weights = np.stack([np.arange(HOP) % (book + 2) + 1 for book in range(BOOKS)])
    return (weights @ hops.T % ENTRIES).astype(np.uint16)


class State:
    """All that makes a stream go on where it was: what came, what went, and what is kept."""

    def __init__(self, asked: say.Open) -> None:
        self.acknowledged = asked.model != "forgetful"
        self.echo, self.codebooks = asked.direction == "echo", asked.codebooks or BOOKS
        self.seq = self.pts = self.hops = 0
        self.pending = np.zeros(0, np.int16)
        self.next_n = self.skip_to = 0
        self.outbox: list[tuple[int, list[bytes | str]]] = []  # not acknowledged
        self.closed = False

    def out(self, make: Callable[[int], list[bytes | str]]) -> None:
        self.outbox.append((self.next_n, make(self.next_n)))
        self.next_n += 1

    def restore(self, blob: bytes) -> None:
        self.seq, self.pts, self.hops, pending = json.loads(blob)
        self.pending = np.array(pending, np.int16)

    def take(self, message: wire.Data | say.Ordered) -> None:
        """One ordered message; raises ValueError where it is not the next one."""
        if message.seq != self.seq:
            raise ValueError(f"got the seq {message.seq}; wanted {self.seq}")
        if isinstance(message, wire.Data):
            assert message.pts == self.pts or message.discontinuity
            self.samples(message.data[0], message.pts)
        self.seq += 1
        match message:
            case say.Mark(id=name):
                self.out(lambda n: [say.encode_message(say.Marked(name, self.pts, n))])
            case say.Flush():
                self.pending = self.pending[:0]
                self.out(lambda n: [say.encode_message(say.Flushed(self.pts, n))])
            case say.Set(codebooks=codebooks):
                self.codebooks = codebooks
                self.out(lambda n: [say.encode_message(say.WasSet(codebooks, n))])
            case say.TakeSnapshot():
                told = (self.seq, self.pts)
                blob = json.dumps([*told, self.hops, self.pending.tolist()]).encode()
                packet = wire.encode_snapshot(wire.StreamSnapshot(0, blob))
                self.out(
                    lambda n: [packet, say.encode_message(say.SnapshotTaken(*told, n, len(blob)))]
                )
            case say.Close():
                self.out(lambda n: [say.encode_message(say.Closed(n, self.hops, 1.0))])

    def samples(self, samples: np.ndarray, pts: int) -> None:
        self.pending = np.concatenate((self.pending, samples))
        self.pts = pts + samples.size
        while self.pending.size >= HOP:
            hop, self.pending = self.pending[:HOP], self.pending[HOP:]
            at = self.hops
            codes = codes_of(hop)[: self.codebooks].astype(np.uint16)
            self.frame(Frame(codes, at * HOP, HOP, at))
            if self.echo:
                heard = (hop / 32768).astype(np.float32)[None]
                self.frame(Frame(heard, at * HOP, HOP, at, track=1))
            self.hops += 1

    def frame(self, frame: Frame) -> None:
        info = ECHO if self.echo else CODES
        self.out(lambda n: [wire.encode_frame(frame, info, STREAM)])


class Stream:
    """A stream, and how the connections of its client are to end."""

    def __init__(
        self, asked: say.Open, breaks: set[int], store: bool = False, again: bool = False
    ) -> None:
        self.state, self.breaks = State(asked), breaks
        self.store, self.again = store, again
        self.saved = deepcopy(self.state)
        self.points = 0
        self.tokens: list[str] = []  # the last two are good: the newest may never have arrived
        self.owner: ServerConnection | None = None

    def token(self) -> str:
        self.tokens = [*self.tokens[-1:], secrets.token_hex(8)]
        return self.tokens[-1]

    def point(self) -> None:
        """Somewhere a connection may break."""
        self.points += 1
        if self.points in self.breaks:
            raise Cut

    def attach(self, socket: ServerConnection) -> None:
        if self.owner is not None:
            self.owner.transport.abort()
            self.lost(self.owner)
        self.owner = socket

    def lost(self, socket: ServerConnection) -> None:
        if self.owner is socket:
            self.owner = None
            if self.store:
                self.state = deepcopy(self.saved)


class FakeServer:
    """All streams of one server; `connected` and `cut` count connections."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.files = static_files()
        self.connected = self.cut = 0

    def page(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page and what it asks for, on the same address."""
        path = urlsplit(request.path).path
        if path.startswith("/v1/stream"):
            return None
        name = PAGE if path == "/" else path.removeprefix("/static/")
        if name in self.files:
            there = self.files[name]
            headers = Headers(HEADERS | {"Content-Type": there.media_type})
            return Response(200, "OK", headers, there.content)
        return Response(404, "Not Found", Headers({"Content-Type": "text/plain"}), b"")

    async def connection(self, socket: ServerConnection) -> None:
        self.connected += 1
        query = parse_qs(urlsplit(socket.request.path).query, keep_blank_values=True)
        stream = None
        try:
            first = say.read_from_client(await socket.recv(decode=True))
            if isinstance(first, say.Resume):
                stream = next((s for s in self.streams if first.token in s.tokens), None)
                if stream is None:
                    await self.refuse(socket, "expired", say.EXPIRED)
                    return
                stream.attach(socket)
                stream.point()
                await self.resumed(socket, stream, first)
            else:
                if first.model not in ("fake", "forgetful"):
                    await self.refuse(socket, "unknown_model", 1008)
                    return
                breaks = {int(k) for k in query.get("break", [""])[0].split(",") if k}
                stream = Stream(first, breaks, "store" in query, "again" in query)
                stream.attach(socket)
                self.streams.append(stream)
                if first.snapshot:
                    stream.state.restore(wire.decode(await socket.recv()).blob)
                await self.opened(socket, stream, first)
            await self.serve(socket, stream, first.window)
        except Cut:
            self.cut += 1
            stream.lost(socket)
            socket.transport.abort()
        except ConnectionClosed:
            if stream is not None:
                stream.lost(socket)

    async def refuse(self, socket: ServerConnection, code: str, close: int) -> None:
        await socket.send(say.encode_message(say.Error(code, f"no: {code}", True)))
        await socket.close(close)

    async def opened(self, socket: ServerConnection, stream: Stream, asked: say.Open) -> None:
        facts = say.InputFacts("s16", RATE, 1, (1, RATE))
        opened = say.Opened(
            *("s-1", stream.token(), "fake", asked.direction, "f", "offline", facts, RATE),
            *(HOP, HOP, 0.0, RATE / HOP, BOOKS, ENTRIES, WINDOW, 2048, 2**20, 5.0),
        )
        await socket.send(say.encode_message(opened))

    async def resumed(self, socket: ServerConnection, stream: Stream, asked: say.Resume) -> None:
        state = stream.state
        n = asked.received
        if stream.again and state.outbox:
            n = min(n, state.outbox[0][0])
        state.skip_to = n if stream.again else max(state.skip_to, n)
        source = "store" if stream.store else "memory"
        told = say.Resumed(*("s-1", stream.token(), state.seq, state.pts, n, True, source, WINDOW))
        await socket.send(say.encode_message(told))

    async def serve(self, socket: ServerConnection, stream: Stream, window: int) -> None:
        state = stream.state
        sent, most = state.skip_to, state.skip_to + window if window else 2**53
        await socket.send(wire.encode_info(ECHO if state.echo else CODES, STREAM, 10**18))
        while True:
            for n, packets in list(state.outbox):
                if n < sent or n >= most:
                    continue
                for packet in packets:
                    stream.point()
                    await socket.send(packet)
                sent = n + 1
                if '"closed"' in packets[0] if isinstance(packets[0], str) else False:
                    await socket.close()
                    return
            got = await socket.recv()
            packet = wire.decode(got) if isinstance(got, bytes) else say.read_from_client(got)
            if isinstance(packet, wire.Credit):
                state.outbox = [kept for kept in state.outbox if kept[0] >= packet.received]
                most = packet.received + packet.window
                continue
            stream.point()
            if isinstance(packet, wire.Data) and packet.data.size == 13:  # an unlucky number
                refused = say.Error("bad_packet", "13 samples", False, packet.seq)
                await socket.send(say.encode_message(refused))
                continue
            try:
                state.take(packet)
            except ValueError as error:
                await socket.send(say.encode_message(say.Error("bad_sequence", str(error))))
                continue
            stream.point()
            await socket.send(wire.encode_credit(wire.Credit(0, state.seq, WINDOW)))
            if state.acknowledged and state.seq % ACK_EVERY == 0:
                stream.saved = deepcopy(state)
                await socket.send(say.encode_message(say.Ack(state.seq, state.pts)))


@asynccontextmanager
async def fake_server(port: int = 0) -> AsyncIterator[tuple[str, FakeServer]]:
    """The server, and its address without a scheme."""
    fake = FakeServer()
    async with serve(
        fake.connection,
        "127.0.0.1",
        port,
        subprotocols=[say.SUBPROTOCOL],
        process_request=fake.page,
        compression=None,
    ) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", fake


async def forever(port: int) -> None:
    async with fake_server(port) as (address, _):
        print(f"http://{address}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(forever(8766))
