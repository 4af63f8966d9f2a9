"""The WebSocket `/v1/stream`: docs/server describes what goes over it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Protocol

import msgspec
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from streamenc.errors import (
    EngineFull,
    InputError,
    OutputError,
    SnapshotError,
    StreamencError,
    TransportError,
    UsageError,
    WireError,
)
from streamenc.io.network.websocket import livemessages
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Error,
    FromClient,
    FromServer,
    Open,
    Ordered,
    Resume,
    encode_message,
    read_from_client,
)
from streamenc.io.network.wire import Credit, Data, Packet, StreamSnapshot
from streamenc.io.network.wire import decode as decode_packet
from streamenc.serve.guard import Admission, Refused, turn_away
from streamenc.serve.service import Ending, Expired, UnknownModel
from streamenc.serve.site import Site
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.inbox import SequenceError
from streamenc.serve.streams.livestream import LiveStream
from streamenc.serve.streams.outbox import Sent, TooSlow

RETRY_AFTER_SECONDS = 1
# Packets that do not fit, until the connection is closed.
MAX_OFFENCES = 16

CLOSE_CODES = {
    "closed": 1000,
    "ending": 1012,
    "engine_gone": 1012,
    "internal": 1011,
    "full": 1013,
    "too_big": 1009,
    "idle": livemessages.IDLE,
    "too_long": livemessages.IDLE,
    "taken_over": livemessages.TAKEN_OVER,
    "expired": livemessages.EXPIRED,
    "offended": livemessages.OFFENDED,
}
POLICY_VIOLATION = 1008


class Fault(Exception):
    """What ends a connection: a code of docs/server, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def routes(site: Site) -> list[BaseRoute]:
    async def endpoint(socket: WebSocket) -> None:
        await serve_stream(site, socket)

    return [WebSocketRoute("/v1/stream", endpoint)]


async def serve_stream(site: Site, socket: WebSocket) -> None:
    """One connection, from its upgrade to its end."""
    try:
        admission = site.guard.admit(socket)
        check_upgrade(site, socket)
    except Refused as refused:
        await deny(site, socket, refused)
        return
    await socket.accept(subprotocol=SUBPROTOCOL)
    try:
        await StreamConnection(site, socket, admission).serve()
    except Fault as fault:
        await close(socket, fault.code, fault.message)
    except WebSocketDisconnect:
        pass


def check_upgrade(site: Site, socket: WebSocket) -> None:
    """Raises Refused for what needs no upgrade to be refused."""
    if SUBPROTOCOL not in socket.scope.get("subprotocols", ()):
        raise Refused(
            400,
            "subprotocol",
            f"ask for the subprotocol {SUBPROTOCOL}; see docs/server",
        )
    service = site.service
    later = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    if service.draining:
        raise Refused(503, "ending", f"{service.draining}; try another server", later)
    if not service.engines:
        raise Refused(503, "not_ready", "the models are not loaded yet; try again", later)
    if "resume" not in socket.query_params and service.full:
        raise Refused(503, "full", "all places are taken; try again later", later)


async def deny(site: Site, socket: WebSocket, refused: Refused) -> None:
    """An HTTP answer instead of the upgrade."""
    site.meter.refused(refused.code)
    await turn_away(socket, refused)


async def close(socket: WebSocket, code: str, message: str) -> None:
    """Says why, and closes."""
    if socket.application_state is not WebSocketState.CONNECTED:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        if code != "closed":
            await socket.send_text(encode_message(Error(code, message, fatal=True)))
        await socket.close(
            CLOSE_CODES.get(code, POLICY_VIOLATION), message.encode()[:120].decode(errors="ignore")
        )


class Tap(Protocol):
    """Who else gets what goes to the client of a stream."""

    def began(self, stream: LiveStream) -> None:
        """This stream, new or resumed. Raises Fault where it may not be."""

    async def passed(self, item: Sent | FromServer | bytes) -> None:
        """An item of the stream's attachment, before it is sent to the client."""


class StreamConnection:
    """A stream's connection once it is accepted.

    Args:
        first: The client's first message, where it was read already.
        tap: Who else gets what comes out.
    """

    def __init__(
        self,
        site: Site,
        socket: WebSocket,
        admission: Admission,
        *,
        first: Open | Resume | None = None,
        tap: Tap | None = None,
    ) -> None:
        self._given, self._tap = first, tap
        self._site, self._service, self._meter = site, site.service, site.meter
        self._socket, self._admission = socket, admission
        self._heard = time.monotonic()
        self._offences = 0

    async def serve(self) -> None:
        """Raises Fault, WebSocketDisconnect."""
        first = self._given or await self._first()
        if self._given is None and isinstance(first, Resume) and await self._passed_on(first):
            return
        stream, attachment = await self._begun(first)
        sender = asyncio.create_task(self._send(attachment))
        reader = asyncio.create_task(self._read(stream, attachment))
        watcher = asyncio.create_task(self._watch())
        tasks = (sender, reader, watcher)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            attachment.detach()
        # The sender is through: the stream has ended, or another client has it.
        await close(self._socket, attachment.ended, attachment.message)
        if stream.ended and attachment.ended != "taken_over":
            await self._service.forget(stream)

    # ----- the beginning

    async def _passed_on(self, first: Resume) -> bool:
        """Whether another process of this server had the stream, and served the client."""
        number = self._site.relay.of_token(self._socket, first.token)
        return number is not None and await self._site.relay.pass_on(
            self._socket, number, self._admission, [encode_message(first)]
        )

    async def _begun(self, first: Open | Resume) -> tuple[LiveStream, Attachment]:
        told: FromServer
        try:
            if isinstance(first, Open):
                snapshot = await self._snapshot() if first.snapshot else None
                stream = await self._service.open(first, self._admission.owner, snapshot=snapshot)
                attachment, _ = stream.attach(window=first.window)
                told = stream.opened
            else:
                stream = await self._service.resume(first, self._admission.owner)
                attachment, told = stream.attach(received=first.received, window=first.window)
                self._meter.resumed(told.source)
        except EngineFull as error:
            self._meter.refused("full")
            raise Fault("full", str(error)) from None
        except Ending as error:
            raise Fault("ending", str(error)) from None
        except Expired as error:
            self._meter.refused("expired")
            raise Fault("expired", str(error)) from None
        except SnapshotError as error:
            raise Fault("bad_snapshot", str(error)) from None
        except (TransportError, OutputError) as error:  # of the engine, or of the store
            raise Fault("engine_gone", str(error)) from None
        except StreamencError as error:
            if isinstance(first, Resume):
                code = "expired"
            else:
                code = "unknown_model" if isinstance(error, UnknownModel) else "bad_open"
            raise Fault(code, str(error)) from None
        try:
            if self._tap is not None:
                self._tap.began(stream)
            await self._socket.send_text(encode_message(told))
        except BaseException:  # the client is gone, among others: its stream waits for it
            attachment.detach()
            raise
        return stream, attachment

    async def _first(self) -> Open | Resume:
        try:
            async with asyncio.timeout(self._service.limits.handshake_seconds):
                message = await self._receive()
        except TimeoutError:
            raise Fault("idle", "nothing came; the first message is open, or resume") from None
        except WireError as error:
            raise Fault("bad_message", str(error)) from None
        if isinstance(message, Open | Resume):
            return message
        raise Fault("bad_message", "the first message is open, or resume")

    async def _snapshot(self) -> bytes:
        try:
            async with asyncio.timeout(self._service.limits.handshake_seconds):
                message = await self._receive()
        except TimeoutError:
            raise Fault("idle", "no snapshot came") from None
        except WireError as error:
            raise Fault("bad_snapshot", str(error)) from None
        if isinstance(message, StreamSnapshot):
            return message.blob
        raise Fault("bad_message", "a snapshot was announced: its packet comes next")

    # ----- from the client

    async def _read(self, stream: LiveStream, attachment: Attachment) -> None:
        while True:
            try:
                message = await self._receive()
            except WireError as error:
                self._offended("bad_packet", str(error), None, attachment)
                continue
            try:
                if isinstance(message, Credit):
                    attachment.credit(message.received, message.window)
                elif isinstance(message, Data | Ordered):
                    await stream.put(message, attachment)
                else:
                    raise Fault("bad_message", f"a stream is open; got {type(message).__name__}")
            except SequenceError as error:
                self._offended("bad_sequence", str(error), _seq(message), attachment)
            except TooSlow as error:
                stream.end("too_slow", str(error))
            except (InputError, WireError) as error:
                self._offended("bad_packet", str(error), _seq(message), attachment)
            except UsageError:
                pass  # it has ended, and the sender tells why; acknowledgements still count

    def _offended(self, code: str, words: str, seq: int | None, attachment: Attachment) -> None:
        self._offences += 1
        self._meter.refused(code)
        if self._offences > MAX_OFFENCES:
            raise Fault("offended", f"{self._offences} packets did not fit, the last one: {words}")
        attachment.notify(Error(code, words, seq=seq))

    async def _receive(self) -> FromClient | Packet:
        """The next message. Raises WireError for a malformed packet, and Fault for malformed JSON,
        behind which nothing can be trusted."""
        event = await self._socket.receive()
        self._heard = time.monotonic()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005), event.get("reason"))
        packet = event.get("bytes")
        if packet is not None:
            self._meter.moved("in", len(packet))
            return decode_packet(packet)
        text = event["text"]
        self._meter.moved("in", len(text))
        try:
            return read_from_client(text)
        except WireError as error:
            raise Fault("bad_message", str(error)) from None

    # ----- to the client

    async def _send(self, attachment: Attachment) -> None:
        send, meter = self._socket.send, self._meter
        async for item in attachment:
            if self._tap is not None:
                await self._tap.passed(item)
            packet: Any = item.packet if isinstance(item, Sent) else item
            if isinstance(packet, msgspec.Struct):
                packet = encode_message(packet)  # type: ignore[arg-type]
            kind = "bytes" if isinstance(packet, bytes) else "text"
            await send({"type": "websocket.send", kind: packet})
            meter.moved("out", len(packet))

    async def _watch(self) -> None:
        """Ends a connection from which nothing comes."""
        seconds = self._service.limits.idle_seconds
        while seconds:
            left = self._heard + seconds - time.monotonic()
            if left <= 0:
                raise Fault("idle", f"nothing came for {seconds:g} s")
            await asyncio.sleep(left)
        await asyncio.Event().wait()


def _seq(message: FromClient | Packet) -> int | None:
    return message.seq if isinstance(message, Data | Ordered) else None
