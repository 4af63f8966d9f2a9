"""Counting: each answer, by its method, its route and its status."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamenc.serve.meter import Meter

METHODS = frozenset(("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"))
# Of a client that went away before there was any.
GONE = 499


class Counting:
    """What a client made up, a path or a method that is not there, counts as "other"."""

    def __init__(self, app: ASGIApp, meter: Meter, routes: Sequence[BaseRoute]) -> None:
        self._app, self._meter = app, meter
        self._routes = [route for route in routes if isinstance(route, Route | Mount)]
        self._paths = {route.path for route in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:  # counted, and passed on
            status = 500
            raise
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._meter.answered(method, self._path(scope["path"]), status)

    def _path(self, path: str) -> str:
        if path in self._paths:
            return path
        for route in self._routes:
            if "{" in route.path_regex.pattern or isinstance(route, Mount):
                if route.path_regex.match(path):
                    return route.path
        return "other"
