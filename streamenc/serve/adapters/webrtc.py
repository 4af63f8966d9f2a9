"""`POST /v1/offer`: sound or images by WebRTC (the extra `webrtc`); docs/server describes it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streamenc.errors import EngineFull, StreamencError, TransportError
from streamenc.io.network.websocket.livemessages import Layout, Open, Opened, Vad
from streamenc.serve.guard import Refused
from streamenc.serve.http.jsonanswers import JsonAnswer, refusal
from streamenc.serve.service import Ending
from streamenc.serve.site import Site
from streamenc.serve.streamsocket import RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from streamenc.serve.adapters.rtcpeer import RtcPeer

logger = logging.getLogger(__name__)

MAX_OFFER_BYTES = 64 * 2**10
# Of an offer. Each medium gets sockets until they are bundled, and each candidate is tried.
MAX_MEDIA, MAX_CANDIDATES = 4, 32
# At the server's end, for peers to hear of it.
GOODBYE_SECONDS = 0.3
LATER = {"Retry-After": str(RETRY_AFTER_SECONDS)}
# How a track is put into a stream.
FORMATS: dict[str, dict[str, Any]] = {
    "audio": {"format": "s16", "rate": 48_000, "channels": 2},
    "video": {"format": "rgb"},
}


class Offer(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/offer`; what `Open` has as well is as there."""

    sdp: str
    model: Annotated[str, Meta(max_length=256)]
    type: Literal["offer"] = "offer"
    codebooks: Annotated[int, Meta(ge=1, le=1024)] | None = None
    dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    size: Annotated[str, Meta(max_length=32)] = ""
    layout: Layout = "books"
    hops: Annotated[int, Meta(ge=1, le=1000)] = 1
    vad: Vad | None = None
    policy: Literal["drop_oldest", "close"] = "drop_oldest"

    def opening(self, kind: str, window: int) -> Open:
        """The stream that it asks for, for a track of that kind."""
        return Open(
            self.model,
            codebooks=self.codebooks,
            dtype=self.dtype,
            size=self.size,
            layout=self.layout,
            hops=self.hops,
            vad=self.vad,
            window=window,
            policy=self.policy,
            **FORMATS[kind],
        )


def routes(site: Site) -> list[BaseRoute]:
    peers = Peers(site)
    return [
        Route("/v1/offer", peers.offered, methods=["POST"]),
        Route("/v1/offer/{peer}", peers.closed, methods=["DELETE"]),
    ]


class Peers:
    """The peers of this process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._peers: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._coming = 0

    async def aclose(self) -> None:
        """Closes all, at the server's end, when their streams have ended."""
        tasks = {task for _, task in self._peers.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def offered(self, request: Request) -> Response:
        """An offer comes in, and its answer goes out once the stream is open."""
        try:
            owner = self._site.guard.admit(request).owner
            self._site.guard.check_streams(owner)
            return JsonAnswer(await self._answer(await _read(request), owner, _host(request)))
        except Refused as refused:
            self._site.meter.refused(refused.code)
            return refusal(refused)
        except ClientDisconnect:
            return Response(status_code=400)

    async def closed(self, request: Request) -> Response:
        """`DELETE`: whoever made the offer ends it."""
        try:
            owner = self._site.guard.admit(request).owner
            its_owner, task = self._peers.get(request.path_params["peer"], (None, None))
            if task is None or its_owner != owner:
                raise Refused(404, "unknown_peer", "there is no such peer, or not any more")
        except Refused as refused:
            return refusal(refused)
        task.cancel()
        await asyncio.wait({task})
        return Response(status_code=204)

    async def _answer(self, offer: Offer, owner: str, host: str) -> dict[str, Any]:
        service = self._site.service
        if importlib.util.find_spec("aiortc") is None:
            raise Refused(501, "not_installed", "WebRTC needs: pip install 'streamenc[webrtc]'")
        from streamenc.serve.adapters import rtcpeer

        if len(self._peers) + self._coming >= service.limits.peers:
            raise Refused(503, "full", f"all {service.limits.peers} peers are taken", LATER)
        kind = self._kind(offer.model)
        self._coming += 1
        try:
            peer = rtcpeer.RtcPeer(service, kind, owner, host)
            try:
                opened = await self._open(peer, offer.opening(kind, rtcpeer.WINDOW))
                sdp = await _answered(peer, offer.sdp)
            except BaseException:  # a cancellation among them: closed, and passed on
                await peer.aclose()
                raise
        finally:
            self._coming -= 1
        name = secrets.token_urlsafe(12)
        if self.aclose not in service.closers:
            service.closers.append(self.aclose)
        task = asyncio.create_task(peer.run(), name=f"peer of {opened.session}")
        self._peers[name] = owner, task
        task.add_done_callback(lambda task: self._over(name, task))
        # It begins: a task that is cancelled before that closes nothing.
        await asyncio.sleep(0)
        return {"type": "answer", "sdp": sdp, "peer": name, "session": opened.session}

    def _kind(self, model: str) -> str:
        """What the model takes. Raises Refused."""
        try:
            kind = self._site.service.model(model).spec.input.kind
        except TransportError as error:
            raise Refused(503, "engine_gone", str(error), LATER) from None
        except StreamencError as error:
            raise Refused(400, "unknown_model", str(error)) from None
        if kind not in FORMATS:
            raise Refused(400, "bad_open", f"{model} takes {kind}; tracks are audio or video")
        return kind

    async def _open(self, peer: RtcPeer, asked: Open) -> Opened:
        """Raises Refused."""
        try:
            return await peer.open(asked)
        except EngineFull as full:
            raise Refused(503, "full", str(full), LATER) from None
        except Ending as error:
            raise Refused(503, "ending", str(error), LATER) from None
        except TransportError as error:
            raise Refused(503, "engine_gone", str(error), LATER) from None
        except StreamencError as error:
            raise Refused(400, "bad_open", str(error)) from None

    def _over(self, name: str, task: asyncio.Task[None]) -> None:
        del self._peers[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a peer failed", exc_info=error)


async def _read(request: Request) -> Offer:
    """Raises Refused."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_OFFER_BYTES:
            raise Refused(413, "too_big", f"an offer has at most {MAX_OFFER_BYTES} bytes")
    try:
        offer = msgspec.json.decode(bytes(body), type=Offer)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refused(400, "bad_message", f"got a malformed offer: {error}") from None
    lines = offer.sdp.splitlines()
    for start, most in (("m=", MAX_MEDIA), ("a=candidate", MAX_CANDIDATES)):
        if (count := sum(line.startswith(start) for line in lines)) > most:
            raise Refused(
                400, "bad_offer", f"got {count} lines {start}...; at most {most} are read"
            )
    if not any(line.startswith("a=fingerprint:") for line in lines):
        raise Refused(400, "bad_offer", "the offer has no fingerprint of its certificate")
    return offer


async def _answered(peer: RtcPeer, sdp: str) -> str:
    """Raises Refused."""
    from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError

    malformed = (ValueError, AssertionError, LookupError, TypeError, AttributeError)
    try:
        return await peer.answer(sdp)
    except (*malformed, InvalidAccessError, InvalidStateError, OperationError) as error:
        # aiortc's parser takes lines apart as it goes, and raises what that raises.
        raise Refused(400, "bad_offer", f"this offer cannot be answered: {error}") from None


def _host(request: Request) -> str:
    """The address at which the offer came in: the peer reaches it; "" where it is none."""
    address, _ = request.scope.get("server") or ("", None)
    with contextlib.suppress(ValueError):  # a path, of a socket of this machine
        return str(ipaddress.ip_address(address))
    return ""
