"""Produces in a room of a server: `ws://host:port/v1/room/NAME`, or `wss://` with TLS.

A connection that breaks is made again, and what the room had not got is sent again. docs/server
describes rooms.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

import anyio

from streamenc import options
from streamenc.errors import InputError, TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.websocket.dialing import ClientConnection, ConnectionClosed
from streamenc.io.network.websocket.ending import Ending
from streamenc.io.network.websocket.livemessages import Closed, Error, Produce, Producing
from streamenc.io.network.websocket.rooms.roomlink import RoomLink, ending, hang_up, said
from streamenc.io.network.wire import Credit, Packet, decode, least_bytes

POLICIES = ("block", "drop")
LINGER_S = 5.0
# A server gives up who says nothing for long.
BEAT_S = 15.0


class RoomSink(Sink):
    """Publishes a stream in a room, which is this one's alone as long as it lasts.

    address    ws://host[:port]/v1/room/NAME, or wss:// with TLS.
    key        What the server knows us by.
    key_file   A file with the key in its first line.
    queue      Frames that may wait for the server, those among them that it has not confirmed.
    policy     What happens beyond those: "block" waits, "drop" drops what comes, counts it and
               flags what follows.
    timeout_s  A server that is full at first, or gone later, is looked for so long.
    ca_file    wss: certificates to trust; the system's where "".
    insecure   wss: trusts anybody.

    `dropped` counts the frames that never reached the server, as far as that is known.
    """

    def __init__(
        self,
        address: str,
        key: str = "",
        key_file: str = "",
        queue: int | str = 256,
        policy: str = "block",
        timeout_s: float | str = 60.0,
        ca_file: str = "",
        insecure: bool | str = False,
    ) -> None:
        self._link = RoomLink(address, key, key_file, ca_file, insecure)
        self._bound = options.integer("queue", queue, 16, 1_000_000)
        self._policy = options.choice("policy", policy, POLICIES)
        self._timeout_s = options.number("timeout_s", timeout_s, 0.1, 86_400.0)
        self._kept: deque[bytes] = deque()
        self._base = self._cursor = 0  # numbers of the first packet kept, and of the next to send
        self._offset = 0  # our number of the first packet of the room's production
        self._limit = 0
        self._token = ""
        self._max_bytes = 0
        self._told = self._closing = self._confirmed = False
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, info: StreamInfo) -> None:
        self._writer = PacketWriter(info, self.clock)
        socket = await self._enter(again=False)
        self._task = asyncio.create_task(self._run(socket))
        self._task.add_done_callback(lambda _: self._room.set())
        if (least := least_bytes(info)) > self._max_bytes:
            raise TransportError(
                f"cannot send {info}: each frame takes {least} bytes or more, and the server takes "
                f"messages of up to {self._max_bytes}; raise its limit, or send smaller frames"
            )

    async def write(self, frame: Frame) -> None:
        assert self._task is not None, "write before open"
        while len(self._kept) >= self._bound and self._policy == "block":
            self._check()
            self._room.clear()
            await self._room.wait()
        self._check()
        packet = self._writer.packet(frame)
        if len(packet) > self._max_bytes:
            raise InputError(
                f"cannot send {frame!r}: it takes {len(packet)} bytes, and the server takes "
                f"messages of up to {self._max_bytes}; raise its limit, or send shorter frames"
            )
        if len(self._kept) >= self._bound:
            self._writer.dropped(frame)
            self.dropped += 1
            self._tell()
            return
        self._writer.sent(frame)
        self._kept.append(packet)
        self._changed.set()

    def _check(self) -> None:
        """Raises what ended the task."""
        if self._task is not None and self._task.done():
            self._told = True
            self._task.result()

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        self._changed.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task}, timeout=LINGER_S)
            await end_task(task)
        if not self._confirmed:
            self.dropped += len(self._kept)
        self._tell()
        if not (self._told or task.cancelled()):
            task.result()

    def _tell(self) -> None:
        told = []
        if self.dropped:
            told.append(
                f"{self.dropped} frames did not reach the server: it was away or too slow, and "
                f"{self._bound} may wait ('queue')"
            )
        if self._closing and not self._confirmed:
            told.append(f"the server did not confirm the end within {LINGER_S:g} s")
        self.remarks = [*self._link.remarks, *told]

    # ----- the connection

    async def _enter(self, *, again: bool) -> ClientConnection:
        socket, answer = await self._link.enter(Produce(self._token), self._timeout_s, again=again)
        assert isinstance(answer, Producing)
        if answer.token != self._token:  # a new production, to which we have sent nothing yet
            self._token, self._offset = answer.token, self._base - answer.received
        self._confirm(answer.received)
        self._cursor = max(self._base, self._offset + answer.received)
        self._limit = self._cursor + answer.window
        self._max_bytes = answer.max_message_bytes
        return socket

    async def _run(self, socket: ClientConnection) -> None:
        while True:
            try:
                why = await self._converse(socket)
            finally:
                with anyio.CancelScope(shield=True):
                    await hang_up(socket)
            if self._confirmed:
                return
            self._link.lost(why)
            self._tell()
            try:
                socket = await self._enter(again=True)
            except TransportError as error:
                raise self._link.gave_up(self._timeout_s, error) from None

    async def _converse(self, socket: ClientConnection) -> Ending:
        sending = asyncio.create_task(self._send(socket))
        try:
            return await self._read(socket)
        finally:
            await end_task(sending)

    async def _send(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            await socket.send(self._writer.info)
            while not await self._sent_all(socket):
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._changed.wait()
                except TimeoutError:
                    await socket.send(self._writer.info)

    async def _sent_all(self, socket: ClientConnection) -> bool:
        """Sends what may be sent; whether that was the end of the stream."""
        self._changed.clear()
        while self._cursor < min(self._base + len(self._kept), self._limit):
            packet = self._kept[self._cursor - self._base]
            self._cursor += 1
            await socket.send(packet)
        done = self._closing and self._cursor == self._base + len(self._kept)
        if done:
            await socket.send(self._writer.end(self.broken))
        return done

    async def _read(self, socket: ClientConnection) -> Ending:
        """Until the connection is closed."""
        last: Error | None = None
        try:
            while True:
                message = await socket.recv()
                if isinstance(message, bytes):
                    self._credit(decode(message))
                elif isinstance(got := said(message), Closed):
                    self._confirmed = True
                elif isinstance(got, Error):
                    last = got
        except ConnectionClosed:
            return ending(socket, last)

    def _credit(self, packet: Packet) -> None:
        if isinstance(packet, Credit):
            self._confirm(packet.received)
            self._limit = self._offset + packet.received + packet.window
            self._changed.set()

    def _confirm(self, received: int) -> None:
        """The room has so many packets of its production."""
        while self._base < min(self._offset + received, self._cursor):
            self._kept.popleft()
            self._base += 1
        self._room.set()
