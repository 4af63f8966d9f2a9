"""Stand-ins for what a supervisor starts: `python -m tests.serve.processes.standin io`, `engine`,
or `supervise`.

The I/O process is the real one but for its application and its service: it says who it is, echoes,
and drains for as long as somebody is connected. The engine is a socket on which nobody answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamenc.serve.guard import Refused, answer, turn_away
from streamenc.serve.limits import Limits
from streamenc.serve.processes import ioworker
from streamenc.serve.processes.lifeline import end_with_parent
from streamenc.serve.processes.listening import Bind
from streamenc.serve.processes.supervisor import Plan, Supervisor
from streamenc.serve.relay import Relay
from streamenc.serve.site import Site
from streamenc.serve.tally import Tally


class StandInService:
    """Drains until nobody is connected."""

    def __init__(
        self, addresses: list[str], limits: Any, *, store: Any, worker: str, **more: Any
    ) -> None:
        self.addresses, self.worker, self.pid = addresses, worker, os.getpid()
        self.tally = Tally()
        self.draining, self.ready, self.connected = "", False, 0
        self.stored = Path(getattr(store, "_folder", store)) / f"{worker}-{os.getpid()}"

    async def start(self) -> None:
        self.ready = True

    async def drain(self, seconds: float) -> None:
        self.draining = "the server ends"
        until = time.monotonic() + seconds
        while self.connected:
            if time.monotonic() > until:
                return
            await asyncio.sleep(0.01)

    def streams_of(self, owner: str) -> int:
        return 0

    async def aclose(self) -> None:
        await asyncio.to_thread(self.stored.write_text, "closed")


def application(site: Site) -> Starlette:
    service: Any = site.service
    relay: Relay = site.relay

    async def who(request: Request) -> Response:
        try:
            site.guard.admit(request)
        except Refused as refused:
            return answer(refused)
        return PlainTextResponse(f"{service.worker} {os.getpid()}")

    async def body(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def echo(websocket: WebSocket) -> None:
        try:
            admission = site.guard.admit(websocket)
            if service.draining:
                raise Refused(503, "ending", service.draining, {"Retry-After": "5"})
        except Refused as refused:
            await turn_away(websocket, refused)
            return
        name = websocket.path_params.get("name")
        if name is not None:
            other = relay.of_room(websocket, name)
            if other is not None and await relay.pass_on(websocket, other, admission):
                return
            if name == "closed":
                await turn_away(websocket, Refused(503, "full", "no place", {"Retry-After": "7"}))
                return
        await websocket.accept("streamenc.v1")
        service.connected += 1
        try:
            first = await websocket.receive_text()
            if name is None:
                other = relay.of_token(websocket, first)
                if other is not None and await relay.pass_on(websocket, other, admission, [first]):
                    return
            await websocket.send_text(f"{service.worker} {os.getpid()} {admission.owner}")
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if (text := message.get("text")) is not None:
                    if text.startswith("close "):
                        await websocket.close(int(text.split()[1]), "as asked")
                        return
                    await websocket.send_text(text)
                else:
                    await websocket.send_bytes(message["bytes"])
        except WebSocketDisconnect:
            pass
        finally:
            service.connected -= 1

    return Starlette(
        routes=[
            Route("/who", who),
            Route("/body", body, methods=["POST"]),
            WebSocketRoute("/v1/stream", echo),
            WebSocketRoute("/v1/room/{name}", echo),
        ]
    )


def engine(address: str, *options: str) -> None:
    """Listens, or ends as a model of the name `ends-with-CODE` wants it."""
    model = options[options.index("-m") + 1]
    if model.startswith("ends-with-"):
        print(f"streamenc: no {model}", file=sys.stderr)
        sys.exit(int(model.removeprefix("ends-with-")))
    if model == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    with socket.socket(socket.AF_UNIX) as listening:
        path = address.removeprefix("ipc://")
        if os.path.exists(path):
            os.unlink(path)
        listening.bind(path)
        listening.listen()
        threading.Event().wait()


def supervise(store: str, options: str) -> int:
    """A supervisor of stand-ins; `options` are some of a Plan, in JSON."""
    given = {"models": ["nano"], "drain_seconds": 3.0} | json.loads(options)
    bind = Bind.read(given.pop("bind", "127.0.0.1:0"))
    plan = Plan(bind=bind, store=Path(store), limits=Limits(), **given)
    command = (sys.executable, "-m", "tests.serve.processes.standin")

    async def main() -> int:
        return await Supervisor(
            plan,
            say=lambda text: print(text, file=sys.stderr, flush=True),
            serving=lambda url: print(url, flush=True),
            io_process=(*command, "io"),
            engine=(*command, "engine"),
        ).run()

    return asyncio.run(main())


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        engine(*sys.argv[2:])
    elif sys.argv[1] == "supervise":
        sys.exit(supervise(*sys.argv[2:]))
    else:
        ioworker.Service = StandInService  # type: ignore[assignment, misc]
        ioworker.application = application
        ioworker.main()
