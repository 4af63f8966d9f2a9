"""The page at `/`, and the files that it and other clients in JavaScript load, held in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

if TYPE_CHECKING:
    from starlette.requests import Request

    from streamenc.serve.site import Site

PAGE = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    # Of types alone; browsers never ask for it, editors do.
    "ts": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, no script or style within the page; images and sound that the page made
# itself are blobs. Microphones and cameras are for this page, not for one that frames it.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for each time, answered with 304: a new server's page never runs an old client.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is answered: its bytes, its type, and the tag by which a browser knows it."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        headers = HEADERS | {"ETag": self.etag}
        tags = request.headers.get("If-None-Match", "")
        if self.etag in (tag.strip().removeprefix("W/") for tag in tags.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def static_files() -> dict[str, StaticFile]:
    """All files of the page by name."""
    found = {}
    for entry in files("streamenc.serve").joinpath("static").iterdir():
        media_type = TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            found[entry.name] = StaticFile(content, media_type, tag)
    return found


def routes(site: Site) -> list[BaseRoute]:
    """`/`, and `/static/NAME` for each file: no other path ever reaches the disk.

    No key is asked for: there is nothing in these files but the page that asks for it.
    """
    there = static_files()

    async def page(request: Request) -> Response:
        return there[PAGE].answer(request)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in there:
            raise HTTPException(404, headers=HEADERS)
        return there[name].answer(request)

    return [Route("/", page), Route("/static/{name}", static)]
