"""`/v1/realtime`: a subset of OpenAI's realtime events over a WebSocket; docs/server has them."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamenc.errors import EngineFull, StreamencError, TransportError
from streamenc.serve.adapters.realtimeevents import Settings
from streamenc.serve.adapters.realtimesession import Gone, RealtimeSession
from streamenc.serve.guard import Refused
from streamenc.serve.limits import Limits
from streamenc.serve.service import Ending
from streamenc.serve.site import Site
from streamenc.serve.streamsocket import RETRY_AFTER_SECONDS

SUBPROTOCOL = "realtime"
LATER = {"Retry-After": str(RETRY_AFTER_SECONDS)}
KEY_SUBPROTOCOL = "openai-insecure-api-key."


def routes(site: Site) -> list[BaseRoute]:
    async def realtime(websocket: WebSocket) -> None:
        await _serve(site, websocket)

    return [WebSocketRoute("/v1/realtime", realtime)]


async def _serve(site: Site, websocket: WebSocket) -> None:
    session = None
    try:
        try:
            owner = site.guard.admit(_with_bearer(websocket)).owner
            model = websocket.query_params.get("model", "")
            session = RealtimeSession(site.service, Settings(model), owner, websocket.send_text)
            await _opened(session)
        except Refused as refused:
            site.meter.refused(refused.code)
            await websocket.send_denial_response(_denial(refused))
            return
        offered = websocket.scope["subprotocols"]
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            await _talk(site.service.limits, websocket, session)
        except Gone as gone:
            await session.refuse(gone.code, gone.message, kind=gone.kind)
            await websocket.close(gone.close, gone.code)
    except WebSocketDisconnect:
        pass
    finally:
        if session is not None:
            await session.aclose()


async def _opened(session: RealtimeSession) -> None:
    """Raises Refused."""
    try:
        await session.open()
    except EngineFull as full:
        raise Refused(503, "full", str(full), LATER) from None
    except Ending as error:
        raise Refused(503, "ending", str(error), LATER) from None
    except TransportError as error:
        raise Refused(503, "engine_gone", str(error), LATER) from None
    except StreamencError as error:
        raise Refused(400, "model_not_found", str(error)) from None


async def _talk(limits: Limits, websocket: WebSocket, session: RealtimeSession) -> None:
    """Until the client leaves. Raises Gone, or WebSocketDisconnect."""
    await session.created()
    reading = asyncio.create_task(_read(limits, websocket, session))
    try:
        await asyncio.wait({reading, session.failed}, return_when=asyncio.FIRST_COMPLETED)
        await (session.failed if session.failed.done() else reading)
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def _read(limits: Limits, websocket: WebSocket, session: RealtimeSession) -> None:
    while True:
        try:
            async with asyncio.timeout(limits.idle_seconds or None):
                message = await websocket.receive()
        except TimeoutError:
            raise Gone("idle", f"nothing came for {limits.idle_seconds:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        if text is None:
            await session.refuse("invalid_event", "got a binary message; events are JSON texts")
        elif len(text) > limits.max_message_bytes:
            raise Gone(
                "too_big",
                f"got an event of {len(text)} characters; at most {limits.max_message_bytes}: "
                "append the sound in smaller pieces",
            )
        else:
            await session.read(text)


def _with_bearer(websocket: WebSocket) -> HTTPConnection:
    """The request as the guard reads it: with the key of OpenAI's subprotocol as a header."""
    for offered in websocket.scope["subprotocols"]:
        if offered.startswith(KEY_SUBPROTOCOL) and "authorization" not in websocket.headers:
            key = offered.removeprefix(KEY_SUBPROTOCOL).encode()
            headers = [*websocket.scope["headers"], (b"authorization", b"Bearer " + key)]
            return HTTPConnection({**websocket.scope, "headers": headers})
    return websocket


def _denial(refused: Refused) -> Response:
    error = {
        "type": "invalid_request_error" if refused.status < 500 else "server_error",
        "code": refused.code,
        "message": refused.message,
        "param": None,
    }
    return Response(
        msgspec.json.encode({"error": error}),
        refused.status,
        refused.headers,
        "application/json",
    )
