"""Files over HTTP: POST /v1/encode and /v1/decode."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any, Self, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.errors import InputError, StreamencError, TransportError, UsageError
from streamenc.io.files.tables.stacked import Stack
from streamenc.serve.files.filecoding import FileCoding, decoding, encoding
from streamenc.serve.files.filereading import FileReader
from streamenc.serve.files.tokenfiles import token_source
from streamenc.serve.files.uploads import Desk, spooled
from streamenc.serve.files.wholejson import MAX_WHOLE_BYTES, whole_json
from streamenc.serve.files.writers import SOUND, TOKENS, Format, Writer, settled
from streamenc.serve.guard import Refused
from streamenc.serve.http.jsonanswers import LATER, refused, unnamed
from streamenc.serve.site import Site

log = logging.getLogger(__name__)

T = TypeVar("T")
Q = TypeVar("Q", bound=Struct)
Pieces: TypeAlias = AsyncGenerator[bytes, None]
# Begins with the file that lies at a path.
Begin: TypeAlias = Callable[[str], Awaitable[Pieces]]
# In a query beside what is asked for: a key, see Guard.
KEY = "token"
BODY = "http.response.body"
A_FORM = (
    "the body is a form; send the file itself as the body: curl --data-binary @FILE, and not -F"
)

_Word = Annotated[str, Meta(max_length=256)]


class EncodeQuery(Struct, forbid_unknown_fields=True):
    """What may stand behind /v1/encode?

    Attributes:
        model: A name that /v1/models lists.
        codebooks: How many come out; all where missing.
        dtype: What features are rounded to: float32, float16 or bfloat16.
        layout: How codes are laid out: books, flat or delay.
        hops: Hops in a step; about a second where missing. 1 shares the steps of live streams.
        channel: Which channel of the sound is taken, from 0, or which ones, such as 0,1; a mix of
            all where missing.
        size: WIDTHxHEIGHT that images are brought to.
        fit: How: crop, pad or stretch.
        filter: By which: nearest, bilinear, bicubic, lanczos or area.
        format: Of the answer: json, arrow, ndjson or events; what Accept says where missing.
    """

    model: _Word
    codebooks: Annotated[int, Meta(ge=1, le=1024)] | None = None
    dtype: _Word | None = None
    layout: _Word | None = None
    hops: Annotated[int, Meta(ge=1, le=1000)] | None = None
    channel: _Word | None = None
    size: _Word | None = None
    fit: _Word | None = None
    filter: _Word | None = None
    format: _Word = ""


class DecodeQuery(Struct, forbid_unknown_fields=True):
    """What may stand behind /v1/decode?

    Attributes:
        model: A name that /v1/models lists.
        format: Of the answer: wav, wav-f32, flac or opus; what Accept says where missing.
    """

    model: _Word
    format: _Word = ""


def routes(site: Site) -> list[BaseRoute]:
    files = Files(site)
    return [
        Route("/v1/encode", files.encode, methods=["POST"]),
        Route("/v1/decode", files.decode, methods=["POST"]),
    ]


class Files:
    """Both routes, which share their places."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._desk = Desk(site.service.limits.files)

    async def encode(self, request: Request) -> Response:
        query = _query(request, EncodeQuery)
        format = _format(request, query.format, TOKENS)
        service = self._site.service

        async def pieces(path: str) -> Pieces:
            model, engine = service.model(query.model), service.engine(query.model)
            options = msgspec.structs.asdict(query)
            coding = encoding(engine, model.name, path, service.limits, options)
            if format.make is None:
                return _whole(coding, lambda: _facts(model, coding, path))
            return _piecewise(coding, format.make(), path)

        return self._work(request, query.model, format, pieces)

    async def decode(self, request: Request) -> Response:
        query = _query(request, DecodeQuery)
        format = _format(request, query.format, SOUND)
        service = self._site.service

        async def pieces(path: str) -> Pieces:
            model = service.model(query.model, decode=True)
            engine = service.engine(query.model, decode=True)
            source = await asyncio.to_thread(token_source, path, model, service.limits)
            assert format.make is not None
            return _piecewise(decoding(engine, model.name, source), format.make(), path)

        return self._work(request, query.model, format, pieces, decode=True)

    def _work(
        self,
        request: Request,
        name: str,
        format: Format,
        pieces: Begin,
        *,
        decode: bool = False,
    ) -> Response:
        site = self._site
        site.guard.admit(request)
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise Refused(415, "bad_media", A_FORM)
        if site.service.draining:
            raise Refused(503, "ending", site.service.draining, LATER)
        try:
            site.service.model(name, decode=decode)
        except TransportError as error:
            raise Refused(503, "not_ready", str(error), LATER) from None
        except UsageError as error:
            raise Refused(404, "unknown_model", str(error)) from None
        return Work(site, self._desk, format, pieces)


class Work(Response):
    """An answer that is made while it is sent. Where the client goes away, the making ends."""

    def __init__(self, site: Site, desk: Desk, format: Format, pieces: Begin) -> None:
        super().__init__(media_type=format.media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self._site, self._desk, self._format, self._pieces = site, desk, format, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refused as long as nothing was sent."""
        limits = self._site.service.limits
        with suppress(ClientDisconnect), self._desk.place():
            async with spooled(Request(scope, receive), limits) as path, Client(receive) as client:
                self._site.meter.moved("in", await asyncio.to_thread(os.path.getsize, path))
                await self._send_all(path, client, send)

    async def _send_all(self, path: str, client: Client, send: Send) -> None:
        begun = False
        try:
            pieces = await self._pieces(path)
            async with aclosing(pieces):
                while piece := await client.unless_gone(anext(pieces, b"")):
                    if not begun:
                        begun = True
                        head = {"status": self.status_code, "headers": self.raw_headers}
                        await send({"type": "http.response.start", **head})
                    await self._send(piece, send)
        except StreamencError as error:
            refusal = refused(error, path)
            if not begun:
                raise refusal from error
            # Not ended as it should be, the answer does not look like the whole.
            log.warning("an answer was broken off: %s", refusal.message)
            return
        await send({"type": BODY, "body": b"", "more_body": False})

    async def _send(self, piece: bytes, send: Send) -> None:
        self._site.meter.moved("out", len(piece))
        try:
            async with asyncio.timeout(self._site.service.limits.idle_seconds or None):
                await send({"type": BODY, "body": piece, "more_body": True})
        except TimeoutError:  # nobody reads
            raise ClientDisconnect from None


class Client:
    """Whoever waits for an answer, once the body is in; a context manager."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def __aenter__(self) -> Self:
        self._gone = asyncio.create_task(self._await_end())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._gone.cancel()
        await asyncio.wait({self._gone})

    async def unless_gone(self, made: Awaitable[T]) -> T:
        """What is made; raises ClientDisconnect as soon as nobody waits for it, and cancels it."""
        making = asyncio.create_task(_awaited(made))
        try:
            await asyncio.wait([making, self._gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not making.done():
                making.cancel()
                await asyncio.wait({making})
        if making.cancelled():
            raise ClientDisconnect
        return making.result()

    async def _await_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _awaited(made: Awaitable[T]) -> T:
    return await made


async def _whole(coding: FileCoding, facts: Callable[[], dict[str, Any]]) -> Pieces:
    """JSON, once all is there."""
    stack: Stack | None = None
    async with coding, aclosing(coding.frames()) as frames:
        async for frame in frames:
            stack = stack or Stack(settled(coding.info, frame))
            stack.add(frame)
            if stack.size > MAX_WHOLE_BYTES:
                raise InputError(
                    f"more than {MAX_WHOLE_BYTES} bytes come out, too much for JSON as a whole; "
                    "ask for format=arrow"
                )
        made = whole_json(facts(), (stack or Stack(coding.info)).recording())
    while piece := await asyncio.to_thread(next, made, b""):
        yield piece


async def _piecewise(coding: FileCoding, writer: Writer, path: str) -> Pieces:
    """As it is made. What fails once something has gone out is told where the format can."""
    begun, broken = False, ""
    async with coding, writer:
        try:
            async with aclosing(coding.frames()) as frames:
                async for frame in frames:
                    if piece := await asyncio.to_thread(writer.write, coding.info, frame):
                        begun = True
                        yield piece
            broken = coding.source.broken
        except StreamencError as error:
            if not (begun and writer.tells):
                raise
            broken = str(error)
        yield await asyncio.to_thread(writer.close, coding.info, unnamed(broken, path))


def _facts(model: RemoteModel, coding: FileCoding, path: str) -> dict[str, Any]:
    reader, info = coding.source, coding.info
    assert isinstance(reader, FileReader)
    facts = {
        "model": model.name,
        "public_name": info.model,
        "fingerprint": model.identity,
        "equality": model.spec.equality,
        "frame_rate": float(info.rate),
        "codebook_size": info.codebook_size,
        "samples": reader.samples,
        "rate": float(reader.rate),
        "seconds": float(reader.seconds),
    }
    if reader.broken:
        facts["broken"] = unnamed(reader.broken, path)
    if reader.remarks:
        facts["remarks"] = [unnamed(remark, path) for remark in reader.remarks]
    return facts


def _query(request: Request, kind: type[Q]) -> Q:
    """Raises Refused."""
    given = {name: value for name, value in request.query_params.items() if name != KEY}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise Refused(400, "bad_request", f"{error}; options are {known}") from None


def _format(request: Request, named: str, known: Sequence[Format]) -> Format:
    """Of the answer: what the query names, or else the first that Accept takes, by its order.

    Raises Refused.
    """
    if named:
        for format in known:
            if format.name == named:
                return format
        names = ", ".join(format.name for format in known)
        raise Refused(400, "bad_request", f"format={named[:40]!r} is none of {names}")
    accepted = request.headers.get("accept", "*/*").lower()
    for media_range in accepted.split(","):
        for format in known:
            if format.fits(media_range.partition(";")[0].strip()):
                return format
    types = ", ".join(format.media_type for format in known)
    raise Refused(406, "not_acceptable", f"the answer is one of {types}; Accept takes none of them")
