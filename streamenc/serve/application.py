"""The application: all routes of a server as one ASGI app."""

from __future__ import annotations

from starlette.applications import Starlette

from streamenc.serve import pageroutes, streamsocket
from streamenc.serve.adapters import realtime, webrtc
from streamenc.serve.site import Site

# Each has a function `routes(site)`.
MODULES = (
    streamsocket,
    realtime,
    webrtc,
    pageroutes,
)


def application(site: Site) -> Starlette:
    """The app of one I/O process."""
    return Starlette(routes=[route for module in MODULES for route in module.routes(site)])
