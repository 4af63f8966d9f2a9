"""HttpDoors in this process, with the stand-in's application behind them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from streamenc.serve.guard import Guard
from streamenc.serve.limits import Limits
from streamenc.serve.processes.httpdoor import HttpDoor
from streamenc.serve.relay import FromOtherProcesses, Relay
from streamenc.serve.site import Site
from tests.serve.processes.standin import StandInService, application


@asynccontextmanager
async def serving(door: HttpDoor) -> AsyncIterator[HttpDoor]:
    task = asyncio.create_task(door.serve())
    await door.listening.wait()
    try:
        yield door
    finally:
        door.should_exit = True
        await task


def listening() -> socket.socket:
    bound = socket.create_server(("127.0.0.1", 0))
    # Small, so that what the system keeps of what nobody reads is little.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
    bound.setblocking(False)
    return bound


@asynccontextmanager
async def a_door(
    folder: Path,
    limits: Limits | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    **site: Any,
) -> AsyncIterator[tuple[HttpDoor, int]]:
    """One, and its port."""
    service: Any = StandInService([], None, store=str(folder), worker="0")
    bound = listening()
    port = bound.getsockname()[1]
    door = HttpDoor(application(Site(service, **site)), bound, limits or Limits(), tls)
    async with serving(door):
        yield door, port


@asynccontextmanager
async def siblings(folder: Path, count: int, guard: Guard) -> AsyncIterator[list[Any]]:
    """Several, each with a port of its own, and a socket for the others.

    Gives (port, service, relay, the door for its siblings) of each.
    """
    paths = [str(folder / f"io-{number}") for number in range(count)]
    doors: list[HttpDoor] = []
    there: list[Any] = []
    for number in range(count):
        service: Any = StandInService([], None, store=str(folder), worker=str(number))
        relay = Relay(number, paths)
        app = application(Site(service, guard, relay=relay))
        bound, own = listening(), socket.socket(socket.AF_UNIX)
        own.bind(paths[number])
        own.listen()
        own.setblocking(False)
        inner = HttpDoor(FromOtherProcesses(app), own, Limits())
        doors += [HttpDoor(app, bound, Limits()), inner]
        there.append((bound.getsockname()[1], service, relay, inner))
    tasks = [asyncio.create_task(door.serve()) for door in doors]
    for door in doors:
        await door.listening.wait()
    try:
        yield there
    finally:
        for door in doors:
            door.should_exit = True
        await asyncio.gather(*tasks)
