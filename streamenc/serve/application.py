"""The application: all routes of a server as one ASGI app."""

from __future__ import annotations

from starlette.applications import Starlette

from streamenc.serve import streamsocket
from streamenc.serve.adapters import realtime
from streamenc.serve.rooms import roomsocket
from streamenc.serve.site import Site


def application(site: Site) -> Starlette:
    """Each module of routes has a function `routes(site)`."""
    modules = (streamsocket, roomsocket, realtime)
    return Starlette(routes=[route for module in modules for route in module.routes(site)])
