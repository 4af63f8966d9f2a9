"""A site over an engine in this process, whose application is called without sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
import httpx

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.serve.application import application
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.site import Site
from tests.support import zoo

PLACES = 4
MODELS = ("nano", "mel", "encodec-48k", "dinov2")

Visit: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, Site]]]


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("door")
    codecs = {name: zoo.codec(name) for name in MODELS}
    with (
        Engine(max_sessions=PLACES, max_wait_ms=1) as engine,
        EngineServer(engine, codecs, f"ipc://{folder}/engine") as server,
    ):
        yield server.address


@pytest.fixture
def visit(address: str, tmp_path: Path) -> Visit:
    """`async with visit(max_body_bytes=100) as (client, site)`: the keywords are of Limits."""

    @asynccontextmanager
    async def visiting(**limits: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Site]]:
        async with Service([address], Limits(**limits)) as service:
            await until(lambda: service.ready)
            site = Site(service, meter=service.meter)
            transport = httpx.ASGITransport(application(site), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client, site

    return visiting


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something to become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()

    anyio.run(limited)
