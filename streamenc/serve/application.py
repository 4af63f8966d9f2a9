"""The application: all routes of a server as one ASGI app."""

from __future__ import annotations

from starlette.applications import Starlette

from streamenc.serve import streamsocket
from streamenc.serve.adapters import realtime, webrtc
from streamenc.serve.site import Site


def application(site: Site) -> Starlette:
    """Each module of routes has a function `routes(site)`."""
    return Starlette(
        routes=[*streamsocket.routes(site), *realtime.routes(site), *webrtc.routes(site)]
    )
