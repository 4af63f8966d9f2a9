"""Relay: takes a client's WebSocket to the process that has what it asks for.

Processes share one listening socket, so a client that resumes may come to any of them. Tokens begin
with the number of the process that made them; rooms belong to one by the hash of their name.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from streamenc.io.network.websocket.livemessages import KEY_SUBPROTOCOL
from streamenc.serve.guard import ADMITTED, Admission, Refused, turn_away

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket
    from websockets.asyncio.client import ClientConnection

logger = logging.getLogger(__name__)

ADMITTED_HEADER = "x-streamenc-admitted"
CONNECT_SECONDS = 5.0
WAITING_MESSAGES = 4  # that were read of a socket and not passed on yet
WAITING_BYTES = 1 << 16
GOING_AWAY, GONE = 1001, 1012


class Relay:
    """What one process knows of the others.

    Args:
        own: This one's number.
        paths: Of the sockets of all processes, by their numbers; with one or none, nothing is
            elsewhere.
    """

    def __init__(
        self, own: int = 0, paths: Sequence[str] = (), *, max_message_bytes: int = 2**24
    ) -> None:
        self._own, self._paths = own, list(paths)
        self._max_message_bytes = max_message_bytes
        self.passing = 0  # connections that go through here now

    def of_token(self, websocket: WebSocket, token: str) -> int | None:
        """Which other process made this token; None for this one, or one that is not there."""
        number, dot, _ = token.partition(".")
        if not dot or not number.isascii() or not number.isdecimal() or len(number) > 4:
            return None
        return self._other(websocket, int(number))

    def of_room(self, websocket: WebSocket, name: str) -> int | None:
        """Which other process has the room of a name; None for this one."""
        if len(self._paths) < 2:
            return None
        return self._other(websocket, zlib.crc32(name.encode()) % len(self._paths))

    def _other(self, websocket: WebSocket, number: int) -> int | None:
        relayed = ADMITTED in websocket.scope
        if relayed or number == self._own or number >= len(self._paths):
            return None
        return number

    async def pass_on(
        self,
        websocket: WebSocket,
        number: int,
        admission: Admission,
        first: Sequence[str | bytes] = (),
    ) -> bool:
        """Passes messages both ways until one side closes; the other one is closed likewise.

        Where the connection was not accepted yet, it is accepted or turned away as there.

        Args:
            number: Of the other process.
            first: Messages that were read of the client already.

        Returns:
            False where that process is not to be reached: nothing was said to the client.
        """
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        try:
            other = await self._connect(websocket, number, admission)
        except InvalidStatus as error:
            if _accepted(websocket):
                return False
            await turn_away(websocket, _refused(error))
            return True
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            logger.info("process %d is not to be reached: %s", number, error)
            return False
        self.passing += 1
        try:
            if not _accepted(websocket):
                await websocket.accept(other.subprotocol)
            for message in first:
                await other.send(message)
            await _both_ways(websocket, other)
        finally:
            self.passing -= 1
            other.transport.abort()
        return True

    async def _connect(
        self, websocket: WebSocket, number: int, admission: Admission
    ) -> ClientConnection:
        from websockets.asyncio.client import unix_connect

        scope = websocket.scope
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = quote(scope["path"]) + (f"?{rest}" if rest else "")
        offered = [p for p in scope.get("subprotocols", ()) if not p.startswith(KEY_SUBPROTOCOL)]
        return await unix_connect(
            self._paths[number],
            f"ws://localhost{path}",
            subprotocols=offered or None,
            additional_headers={ADMITTED_HEADER: quote(admission.owner)},
            compression=None,
            ping_interval=None,
            open_timeout=CONNECT_SECONDS,
            max_size=self._max_message_bytes,
            max_queue=WAITING_MESSAGES,
            write_limit=WAITING_BYTES,
            user_agent_header=None,
        )


class FromOtherProcesses:
    """The application behind a process's own socket, where only its siblings connect.

    Whom they admitted is believed, as the socket's folder is for this user alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            owner = dict(scope["headers"]).get(ADMITTED_HEADER.encode(), b"")
            scope[ADMITTED] = Admission(unquote(owner.decode("latin-1")))
        await self._app(scope, receive, send)


async def _both_ways(websocket: WebSocket, other: ClientConnection) -> None:
    there = asyncio.create_task(_to_other(websocket, other))
    back = asyncio.create_task(_from_other(websocket, other))
    try:
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        if there.done() and not back.done():
            # The client closed: the other process is told, and what it says is of no use.
            await asyncio.wait((back,), timeout=1.0)
    finally:
        for task in (there, back):
            task.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
    for task in (there, back):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _to_other(websocket: WebSocket, other: ClientConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            await other.close(_sendable(message.get("code")), message.get("reason") or "")
            return
        data = message.get("bytes")
        try:
            await other.send(message["text"] if data is None else data)
        except ConnectionClosed:  # the other task tells the client
            return


async def _from_other(websocket: WebSocket, other: ClientConnection) -> None:
    from starlette.websockets import WebSocketDisconnect
    from websockets.exceptions import ConnectionClosed

    try:
        while True:
            try:
                message = await other.recv()
            except ConnectionClosed as closed:
                received = closed.rcvd
                code = GONE if received is None else _sendable(received.code)
                await websocket.close(code, "" if received is None else received.reason)
                return
            if isinstance(message, str):
                await websocket.send_text(message)
            else:
                await websocket.send_bytes(message)
    except (WebSocketDisconnect, RuntimeError):  # the client is gone: the other task sees it too
        return


def _sendable(code: int | None) -> int:
    """Codes that only say that none came may not be sent."""
    return code if code is not None and code not in (1004, 1005, 1006, 1015) else GOING_AWAY


def _accepted(websocket: WebSocket) -> bool:
    from starlette.websockets import WebSocketState

    return websocket.application_state is not WebSocketState.CONNECTING


def _refused(error: Any) -> Refused:
    """What the other process answered instead of accepting."""
    import msgspec

    response = error.response
    headers = {}
    if "Retry-After" in response.headers:
        headers["Retry-After"] = response.headers["Retry-After"]
    try:
        said = msgspec.json.decode(response.body or b"", type=dict[str, dict[str, str]])["error"]
        code, message = said["code"], said["message"]
    except (msgspec.DecodeError, KeyError):
        code, message = "refused", "it was refused"
    return Refused(response.status_code, code, message, headers)
