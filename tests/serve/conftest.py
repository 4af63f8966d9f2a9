"""A server in this process: an engine with its door, a service, and the app on a port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
import uvicorn

import streamenc
from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.serve.application import application
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.site import Site
from streamenc.serve.streams.sessionstore import FolderStore
from tests.support import zoo

PLACES = 16


@dataclass
class Served:
    """What a test sees of a server.

    Attributes:
        url: ws://127.0.0.1:port
        loop: That of the server, in a thread of its own.
    """

    url: str
    service: Service
    engine: Engine
    loop: asyncio.AbstractEventLoop
    kill: Callable[[], None] = field(repr=False, default=lambda: None)

    @property
    def http(self) -> str:
        return self.url.replace("ws://", "http://")

    def call(self, coroutine: object) -> object:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)  # type: ignore[arg-type]


@cache
def nano() -> Codec:
    return streamenc.load("nano")


@cache
def resnet() -> Codec:
    """Features of images, of random weights."""
    return zoo.codec("resnet")


@pytest.fixture(scope="session")
def engine_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    """An engine that serves nano, and what the others need; for all tests of a process."""
    folder = tmp_path_factory.mktemp("engine")
    codecs = {"nano": nano(), "mel": zoo.codec("mel"), "resnet": resnet()}
    with Engine(max_sessions=2 * PLACES, max_wait_ms=1) as engine:
        for codec in codecs.values():
            engine.warm_blocking(codec.encoder)
        with EngineServer(engine, codecs, f"ipc://{folder}/engine") as server:
            yield server.address, engine


@pytest.fixture
def serve(engine_address: tuple[str, Engine], tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers: `serve(limits=Limits(...))`; all of them share one store."""
    stops: list[Callable[[], None]] = []

    def start(**options: object) -> Served:
        served, stop = _started(engine_address, tmp_path / "store", **options)
        stops.append(stop)
        return served

    yield start
    for stop in reversed(stops):
        stop()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One server with the usual limits."""
    return serve()


async def until(true: Callable[[], bool]) -> None:
    """Waits until it is, for twenty seconds at most."""
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


def _started(
    engine_address: tuple[str, Engine],
    store: Path,
    limits: Limits | None = None,
    worker: str = "0",
    **site: object,
) -> tuple[Served, Callable[[], None]]:
    address, engine = engine_address
    ready, made = threading.Event(), {}

    @asynccontextmanager
    async def running() -> AsyncIterator[Service]:
        async with Service([address], limits, store=FolderStore(store), worker=worker) as service:
            await until(lambda: service.ready)
            yield service

    async def main() -> None:
        async with running() as service:
            config = uvicorn.Config(
                application(Site(service, **site)),  # type: ignore[arg-type]
                port=0,
                log_level="warning",
                ws="websockets-sansio",
                ws_per_message_deflate=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            task = asyncio.create_task(server.serve())
            await until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            made.update(service=service, server=server, loop=asyncio.get_running_loop(), port=port)
            ready.set()
            await task

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="test server", daemon=True)
    thread.start()
    assert ready.wait(30)

    def stop() -> None:
        made["server"].should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    return Served(
        f"ws://127.0.0.1:{made['port']}", made["service"], engine, made["loop"], stop
    ), stop
