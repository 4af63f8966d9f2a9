"""The WebSocket `/v1/room/NAME`: docs/server describes what goes over it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamenc.errors import EngineFull, InputError, WireError
from streamenc.io.network.repacking import restreamed
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Closed,
    Error,
    FromClient,
    FromServer,
    Listen,
    Listening,
    Open,
    Produce,
    Producing,
    Resume,
    encode_message,
    read_from_client,
)
from streamenc.io.network.wire import Credit, Data, End, Info, Packet, encode_credit
from streamenc.io.network.wire import decode as decode_packet
from streamenc.serve.guard import Admission, Refused
from streamenc.serve.rooms.listener import Listener
from streamenc.serve.rooms.room import Occupied, Production, Room, Rooms
from streamenc.serve.site import Site
from streamenc.serve.streams.livestream import LiveStream
from streamenc.serve.streams.outbox import Sent
from streamenc.serve.streamsocket import (
    MAX_OFFENCES,
    RETRY_AFTER_SECONDS,
    Fault,
    StreamConnection,
    close,
    deny,
)

# Packets of a producer that may be on their way.
WINDOW = 64
# So many of them are credited at once.
CREDITED = 8
LATER = {"Retry-After": str(RETRY_AFTER_SECONDS)}
# Messages that a listener may send, which has nothing to say.
MAX_IDLE_TALK = 256


def routes(site: Site) -> list[BaseRoute]:
    rooms = Rooms(site.service.limits)

    async def endpoint(socket: WebSocket) -> None:
        await serve_room(site, rooms, socket)

    return [WebSocketRoute("/v1/room/{name}", endpoint)]


async def serve_room(site: Site, rooms: Rooms, socket: WebSocket) -> None:
    """One connection, from its upgrade to its end."""
    try:
        admission = site.guard.admit(socket)
        name = socket.path_params["name"]
        if (number := site.relay.of_room(socket, name)) is not None:
            if await site.relay.pass_on(socket, number, admission):
                return
            raise Refused(503, "not_ready", "the room's process is not there; try again", LATER)
        room = _entered(site, rooms, socket)
    except Refused as refused:
        await deny(site, socket, refused)
        return
    try:
        await socket.accept(subprotocol=SUBPROTOCOL)
        await _Visitor(site, socket, admission, room).serve()
    except Fault as fault:
        await close(socket, fault.code, fault.message)
    except WebSocketDisconnect:
        pass
    finally:
        room.look()


def _entered(site: Site, rooms: Rooms, socket: WebSocket) -> Room:
    """Raises Refused."""
    if SUBPROTOCOL not in socket.scope.get("subprotocols", ()):
        raise Refused(400, "subprotocol", f"ask for the subprotocol {SUBPROTOCOL}; see docs/server")
    if site.service.draining:
        raise Refused(503, "ending", f"{site.service.draining}; try another server", LATER)
    try:
        return rooms.enter(socket.path_params["name"])
    except EngineFull as error:
        raise Refused(503, "full", str(error), LATER) from None
    except InputError as error:
        raise Refused(400, "bad_room", str(error)) from None


class _Visitor:
    """A connection in a room; its first message says as what it came."""

    def __init__(self, site: Site, socket: WebSocket, admission: Admission, room: Room) -> None:
        self._site, self._socket, self._admission, self._room = site, socket, admission, room
        self._limits, self._meter = site.service.limits, site.meter
        self._offences = 0

    async def serve(self) -> None:
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                first = await self._receive()
        except TimeoutError:
            raise Fault("idle", "nothing came; say produce, open, resume or listen") from None
        except WireError as error:
            raise Fault("bad_message", str(error)) from None
        try:
            if isinstance(first, Listen):
                await self._listen(first)
            elif isinstance(first, Produce):
                await self._produce(first)
            elif isinstance(first, Open | Resume):
                tap = RoomTap(self._room, new=isinstance(first, Open))
                try:
                    await StreamConnection(
                        self._site, self._socket, self._admission, first=first, tap=tap
                    ).serve()
                finally:
                    tap.left()
            else:
                raise Fault("bad_message", "the first message is produce, open, resume or listen")
        except Occupied as error:
            raise Fault("occupied", str(error)) from None
        except EngineFull as error:
            raise Fault("full", str(error)) from None

    # ----- who listens

    async def _listen(self, asked: Listen) -> None:
        room, limits = self._room, self._limits
        listener = room.join(asked)
        try:
            await self._say(Listening(room.name, room.producing, limits.room_wait_seconds))
            await _either(self._forward(listener), self._idle_talk())
            await close(self._socket, listener.ended, listener.message)
        finally:
            room.part(listener)

    async def _forward(self, listener: Listener) -> None:
        async for item in listener:
            if isinstance(item, bytes):
                await self._socket.send_bytes(item)
                self._meter.moved("out", len(item))
            else:
                self._meter.dropped("output", item.packets)
                await self._say(item)

    async def _idle_talk(self) -> None:
        """What a listener sends, which is nothing."""
        for _ in range(MAX_IDLE_TALK):
            await self._receive_event()
        raise Fault("offended", "who listens has nothing to say")

    # ----- who produces

    async def _produce(self, asked: Produce) -> None:
        room, limits = self._room, self._limits
        production = room.produce(asked.token)
        over = production.over
        try:
            await self._say(
                Producing(
                    room.name,
                    production.token,
                    production.received,
                    WINDOW,
                    limits.max_message_bytes,
                    limits.resume_seconds,
                )
            )
            await _either(self._take_all(production, over), over.wait())
        finally:
            room.left(production)
        if over.is_set():
            raise Fault("taken_over", "another connection produces this stream now")
        await close(self._socket, "closed", "the stream ended")

    async def _take_all(self, production: Production, over: asyncio.Event) -> None:
        """Until its end packet has come, or another connection begins where this one stopped."""
        credited = production.received
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_seconds or None):
                    got = await self._receive()
                if over.is_set():
                    return
                if isinstance(got, End):
                    self._room.finish(production, production.end(got.broken))
                    await self._say(Closed(0, production.received, 0.0))
                    return
                await self._take(production, got)
            except TimeoutError:
                raise Fault("idle", "nothing came; send info again where there is none") from None
            except (InputError, WireError) as error:
                self._offences += 1
                self._meter.refused("bad_packet")
                if self._offences > MAX_OFFENCES:
                    raise Fault("offended", f"many packets did not fit, at last: {error}") from None
                await self._say(Error("bad_packet", str(error)))
            if production.received - credited >= CREDITED:
                credited = production.received
                await self._socket.send_bytes(encode_credit(Credit(0, credited, WINDOW)))

    async def _take(self, production: Production, got: FromClient | Packet) -> None:
        packet = self._packet
        if isinstance(got, Info):
            if production.describe(got):
                self._room.describe(packet)
        elif isinstance(got, Data):
            production.check(got)
            production.count(got)
            await self._room.publish(packet)
        else:
            raise Fault("bad_message", f"got {type(got).__name__}; a producer sends packets")

    # ----- both

    async def _say(self, message: FromServer) -> None:
        await self._socket.send_text(encode_message(message))

    async def _receive_event(self) -> Any:
        """Raises Fault, WebSocketDisconnect."""
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005), event.get("reason"))
        message = event.get("bytes") or event.get("text") or ""
        self._meter.moved("in", len(message))
        if len(message) > self._limits.max_message_bytes:
            raise Fault(
                "too_big",
                f"got a message of {len(message)} bytes; at most {self._limits.max_message_bytes}",
            )
        return message

    async def _receive(self) -> FromClient | Packet:
        """Raises WireError for a malformed packet, Fault, WebSocketDisconnect."""
        message = await self._receive_event()
        if isinstance(message, bytes):
            self._packet = message
            return decode_packet(message)
        try:
            return read_from_client(message)
        except WireError as error:
            raise Fault("bad_message", str(error)) from None


class RoomTap:
    """What the server makes of a producer's input goes to all who listen, too."""

    def __init__(self, room: Room, *, new: bool) -> None:
        """Raises Occupied, where the stream is a new one."""
        self._room = room
        self._production = room.produce() if new else None

    def began(self, stream: LiveStream) -> None:
        session = stream.opened.session
        if self._production is None:
            self._production = self._room.produce(self._room.token_of(session))
        self._production.session = session

    async def passed(self, item: Sent | FromServer | bytes) -> None:
        production = self._production
        assert production is not None
        if isinstance(item, bytes):
            self._describe(production, item)
        elif isinstance(item, Sent) and item.n >= production.next_n:
            production.next_n = item.n + 1
            if isinstance(item.packet, bytes):
                await self._pass(production, item.packet)
            elif isinstance(item.what, Closed):
                self._room.finish(production, production.end(""))

    def _describe(self, production: Production, packet: bytes) -> None:
        got = decode_packet(packet)
        if isinstance(got, Info) and production.info is None:
            # Streams of a server have no number of their own, as packets in a room must have.
            packet = restreamed(packet, secrets.randbits(62) | 1)
            got = decode_packet(packet)
            assert isinstance(got, Info)
            production.describe(got)
            self._room.describe(packet)

    async def _pass(self, production: Production, packet: bytes) -> None:
        assert production.info is not None
        packet = restreamed(packet, production.info.stream)
        got = decode_packet(packet)
        assert isinstance(got, Data)
        production.count(got)
        await self._room.publish(packet)

    def left(self) -> None:
        if self._production is not None:
            self._room.left(self._production)


async def _either(*ways: Coroutine[Any, Any, Any]) -> None:
    """Until the first of them is through; raises what ended it."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
