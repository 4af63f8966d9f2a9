"""The application: all routes of a server as one ASGI app."""

from __future__ import annotations

from starlette.applications import Starlette

from streamenc.serve import pageroutes, streamsocket
from streamenc.serve.adapters import realtime, webrtc
from streamenc.serve.files import fileroutes
from streamenc.serve.http import inforoutes, openapi
from streamenc.serve.http.counting import Counting
from streamenc.serve.http.jsonanswers import handlers
from streamenc.serve.rooms import roomsocket
from streamenc.serve.site import Site

# Each has a function `routes(site)`, whose routes stand in http/description.py.
MODULES = (
    streamsocket,
    roomsocket,
    realtime,
    webrtc,
    pageroutes,
    fileroutes,
    inforoutes,
    openapi,
)


def application(site: Site) -> Starlette:
    """The app of one I/O process."""
    routes = [route for module in MODULES for route in module.routes(site)]
    app = Starlette(routes=routes, exception_handlers=handlers(site.meter))
    app.add_middleware(Counting, meter=site.meter, routes=routes)
    return app
