"""Answers in JSON, those to what cannot be done among them: {"error": {"code", "message"}}."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from streamenc.errors import (
    EngineFull,
    FitError,
    InputError,
    MediaError,
    StreamencError,
    TransportError,
    UsageError,
)
from streamenc.serve.guard import Refused
from streamenc.serve.meter import Meter

log = logging.getLogger(__name__)

CODES = {
    400: "bad_request",
    404: "not_found",
    405: "bad_method",
    408: "idle",
    413: "too_big",
    415: "bad_media",
    422: "bad_media",
    503: "full",
}
INTERNAL = "something went wrong here, which the server's log tells more of"


# Of what is only so for now.
LATER = {"Retry-After": "2"}


class JsonAnswer(Response):
    """Anything that msgspec encodes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def refusal(refused: Refused) -> JsonAnswer:
    """The answer where something is refused."""
    error = {"code": refused.code, "message": refused.message}
    return JsonAnswer({"error": error}, refused.status, headers=refused.headers)


def refused(error: StreamencError, path: str) -> Refused:
    """What an error means for whoever sent the file that lies at `path`."""
    message = unnamed(str(error), path)
    if isinstance(error, EngineFull):
        return Refused(503, "full", "all places are taken; try again later", LATER)
    if isinstance(error, TransportError):
        return Refused(503, "engine_gone", "the engine is not there now; try again soon", LATER)
    if isinstance(error, MediaError):
        return Refused(415, "bad_media", message)
    if isinstance(error, InputError | FitError):
        return Refused(422, "bad_media", message)
    if isinstance(error, UsageError):
        return Refused(400, "bad_request", message)
    log.error("a file failed: %s", message)
    return Refused(500, "internal", INTERNAL)


def unnamed(text: str, path: str) -> str:
    """Without the path at which a stranger's file lies here."""
    return text.replace(f"{path!r}", "the file").replace(path, "the file")


async def _http(request: Request, error: Exception) -> Response:
    """What Starlette says itself: no such path, another method."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    if status == 404:
        message = f"there is no {path[:80]!r} here; /docs has what there is"
    elif status == 405:
        allowed = (error.headers or {}).get("Allow", "others")
        message = f"{request.method[:16]} is not for {path[:80]!r}; it takes {allowed}"
    else:
        message = str(error.detail)
    code = CODES.get(status, HTTPStatus(status).name.lower())
    return refusal(Refused(status, code, message, dict(error.headers or {})))


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(Refused(500, "internal", INTERNAL))


def handlers(meter: Meter) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """For Starlette's `exception_handlers`."""

    async def refusing(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        meter.refused(error.code)
        return refusal(error)

    return {Refused: refusing, HTTPException: _http, Exception: _failed}
