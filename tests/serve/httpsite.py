"""A site over a real engine in this process, and clients of its application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.errors import TransportError, UsageError
from streamenc.serve.application import application
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.site import Site


class OneEngine(Service):
    """What routes of HTTP need of a Service, on one engine."""

    def __init__(self, engine: RemoteEngine, limits: Limits) -> None:
        self._engine, self.limits = engine, limits
        self.draining, self.ready = "", True
        self.gone = False

    def models(self) -> list[RemoteModel]:
        return list(self._engine.models)

    def model(self, name: str, *, decode: bool = False) -> RemoteModel:
        return self._engine.model(name, decode=decode)

    def engine(self, name: str, *, decode: bool = False) -> RemoteEngine:
        if self.gone:
            raise TransportError("the engine is gone")
        if not any(m.name == name and m.decode == decode for m in self.models()):
            raise UsageError(f"no {name}")
        return self._engine

    def engines(self) -> list[RemoteEngine]:
        return [self._engine]


@asynccontextmanager
async def visited(
    address: str, limits: Limits | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Site]]:
    """A client of a site on the engine at `address`, without sockets."""
    async with await RemoteEngine.connect(address) as engine:
        site = Site(OneEngine(engine, limits or Limits()))
        transport = httpx.ASGITransport(application(site), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, site
