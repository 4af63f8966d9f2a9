"""An I/O process: HTTP and WebSockets on the server's socket, and the streams behind them.

It computes nothing and needs no torch: `python -m streamenc.serve.processes.ioworker`, with a
WorkerSetup on standard input, which the supervisor holds open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streamenc import addresses
from streamenc.errors import StreamencError
from streamenc.serve.application import application
from streamenc.serve.guard import Guard
from streamenc.serve.keyring import Keyring
from streamenc.serve.meter import Meter
from streamenc.serve.processes.httpdoor import HttpDoor
from streamenc.serve.processes.lifeline import end_with_parent, first_line
from streamenc.serve.processes.tlsfiles import tls_context
from streamenc.serve.processes.workersetup import LISTENING, READY, WAITING, WorkerSetup
from streamenc.serve.relay import FromOtherProcesses, Relay
from streamenc.serve.service import Service
from streamenc.serve.site import Site
from streamenc.serve.streams.sessionstore import FolderStore
from streamenc.serve.tally import Tally

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

access = logging.getLogger("streamenc.access")

LOOK_SECONDS = 0.05
MAX_THREADS = 64


class IoWorker:
    """One I/O process, from its start to its end."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        limits = setup.limits
        # Beside the tally, in the folder that the processes share.
        self.meter = meter = Meter(str(Path(setup.tally).parent), f"worker{setup.number}")
        self.service = Service(
            setup.engines,
            limits,
            store=FolderStore(setup.store),
            worker=str(setup.number),
            meter=meter,
            tally=Tally(
                setup.number,
                len(setup.siblings),
                Path(setup.tally),
                [key.owner for key in setup.keys],
            ),
        )
        guard = Guard(
            Keyring(setup.keys),
            origins=setup.origins,
            local=setup.local,
            sessions_per_key=limits.sessions_per_key,
            streams=self._streams_of,
        )
        relay = Relay(setup.number, setup.siblings, max_message_bytes=2**24)
        app = application(Site(self.service, guard, meter, relay))
        bound = socket.socket(fileno=setup.descriptor)
        tls = None if setup.tls is None else tls_context(*map(Path, setup.tls))
        self.doors = [HttpDoor(AccessLog(app), bound, limits, tls)]
        if len(setup.siblings) > 1:
            own = _listen_to_siblings(setup.siblings[setup.number])
            self.doors.append(HttpDoor(FromOtherProcesses(app), own, limits))
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Once is enough: who wants it to end at once kills it.
            loop.add_signal_handler(number, self._leaving.set)
        await self.service.start()
        serving = [asyncio.create_task(door.serve()) for door in self.doors]
        telling = asyncio.create_task(self._tell())
        counting = asyncio.create_task(self.meter.keep())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            tasks = (leaving, telling, counting, *serving)  # all but the first one never end
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self.service.drain(self.setup.drain_seconds)
        finally:
            telling.cancel()
            leaving.cancel()
            counting.cancel()
            for door in self.doors:
                door.should_exit = True
            await asyncio.gather(*serving, telling, leaving, counting, return_exceptions=True)
            await self.service.aclose()
            self.meter.leave()
            self.service.tally.close()
        for task in (telling, counting, *serving):
            if not task.cancelled():
                task.result()

    def _streams_of(self, owner: str) -> int:
        return self.service.tally.total(owner, self.service.streams_of(owner))

    async def _tell(self) -> None:
        """Tells the supervisor what comes about."""
        for door in self.doors:
            await door.listening.wait()
        _say(LISTENING)
        was_ready = False
        while True:
            if self.service.ready != was_ready:
                was_ready = self.service.ready
                _say(READY if was_ready else WAITING)
            self.service.tally.tell(self.service.streams_of)
            await asyncio.sleep(LOOK_SECONDS)


class AccessLog:
    """One line for each request, without its query, in which keys may be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not access.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            client = scope.get("client") or ("?", 0)
            access.info(
                "%s %s %s %s, %.3f s",
                client[0],
                scope.get("method", "WS"),
                ascii(scope["path"][:200]),
                status or "-",
                time.monotonic() - began,
            )


def _listen_to_siblings(path: str) -> socket.socket:
    """A socket of our own, in a folder that only this user can enter."""
    Path(path).unlink(missing_ok=True)  # of the process that had this number before
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(128)
    listening.setblocking(False)
    return listening


def _say(word: bytes) -> None:
    try:
        os.write(1, word)
    except OSError:  # the supervisor is gone, which the lifeline sees
        pass


def log_to_stderr(verbose: bool) -> None:
    """As other commands do; of uvicorn and websockets no line that has a whole URL in it."""
    addresses.log_to_stderr(logging.INFO if verbose else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING if verbose else logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that broke off


def main() -> None:
    """Runs until SIGTERM, or until the supervisor is gone."""
    line = first_line()
    if not line:
        return
    end_with_parent()
    setup = msgspec.json.decode(line, type=WorkerSetup)
    log_to_stderr(setup.verbose)

    async def go() -> None:
        # Files that decode for long in a few threads must not hold up what others want of one.
        threads = ThreadPoolExecutor(MAX_THREADS, "streamenc-io")
        asyncio.get_running_loop().set_default_executor(threads)
        await IoWorker(setup).run()

    try:
        asyncio.run(go())
    except StreamencError as error:
        print(f"streamenc: {addresses.shown_text(str(error))}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
