"""The application: all routes of a server as one ASGI app."""

from __future__ import annotations

from starlette.applications import Starlette

from streamenc.serve.http import fileroutes, inforoutes, openapi
from streamenc.serve.http.answers import HANDLERS
from streamenc.serve.site import Site


def application(site: Site) -> Starlette:
    """Each module of routes has a function `routes(site)`; add yours here."""
    routes = [*inforoutes.routes(site), *fileroutes.routes(site), *openapi.routes(site)]
    return Starlette(routes=routes, exception_handlers=dict(HANDLERS))
