"""Connection: a client's socket, which never waits once the engine has answered its hello."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from streamenc.engine.remote.endpoint import Endpoint
from streamenc.engine.remote.protocol import Hello, Refused, Welcome, head, read_engine
from streamenc.errors import TransportError, WireError

# What it may be silent before it counts as broken: ZeroMQ's own thread answers, however long
# Python computes.
SILENT_MS = 4000
LINGER_MS = 500
# An engine would not know us any more. With -1, for not at all, ZeroMQ would throw away what came
# before the connection broke and was not read yet: the reason.
NEVER_MS = 1_000_000_000
# Messages that are read before the event loop does something else.
MAX_READS = 64


class Connection:
    """A socket to an engine; of one process and, once it is `watched`, one event loop.

    Attributes:
        welcome: What the engine answered at first.
        unsent: Messages that the socket did not take yet.

    Raises:
        UsageError: For an address that no engine can have.
        TransportError: Where no engine is there, or one of another version.
    """

    def __init__(self, address: str, timeout_seconds: float) -> None:
        endpoint = Endpoint(address)
        self.address = endpoint.address
        self.unsent: deque[list[Any]] = deque()
        context = zmq.Context()
        self._socket = context.socket(zmq.DEALER)
        # Of events that the socket tells, the one that is an end; it is told where we listen.
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for option, value in {
            zmq.LINGER: 0,
            zmq.RECONNECT_IVL: NEVER_MS,
            zmq.HEARTBEAT_IVL: SILENT_MS // 4,
            zmq.HEARTBEAT_TIMEOUT: SILENT_MS,
            zmq.HEARTBEAT_TTL: SILENT_MS,
        }.items():
            self._socket.set(option, value)
        self._close = weakref.finalize(self, _close, os.getpid(), self._socket, self._monitor)
        try:
            endpoint.connect(self._socket)
            self.welcome = self._greeted(timeout_seconds)
        except BaseException:  # Ctrl-C among them: closed, and passed on
            self.close()
            raise

    def watch(
        self, loop: asyncio.AbstractEventLoop, read: Callable[[], None], look: Callable[[], None]
    ) -> None:
        """`read` is called when something may have come, `look` when the connection broke."""
        loop.add_reader(self._socket.fileno(), read)
        loop.add_reader(self._monitor.fileno(), look)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._socket.fileno())
        loop.remove_reader(self._monitor.fileno())

    def send(self, frames: list[Any]) -> None:
        """Sends a message behind those in `unsent`, or keeps it there where this would wait.

        Whoever sends reads afterwards: a socket that was asked anything may not tell any more that
        something has come.
        """
        self.unsent.append(frames)
        self.send_rest()

    def send_rest(self) -> None:
        while self.unsent:
            try:
                self._socket.send_multipart(self.unsent[0], zmq.DONTWAIT)
            except zmq.Again:
                return
            self.unsent.popleft()

    def receive(self) -> list[memoryview] | None:
        """The frames of the next message; None where there is none now."""
        try:
            return [memoryview(part) for part in self._socket.recv_multipart(zmq.DONTWAIT)]
        except zmq.Again:
            return None

    @property
    def broken(self) -> bool:
        return bool(self._monitor.poll(0))

    def close(self) -> None:
        """What was sent last goes out yet, meanwhile. May be called twice."""
        self._close()

    def _greeted(self, timeout_seconds: float) -> Welcome:
        """What the engine answers to a hello, which this waits for."""
        self._socket.send_multipart([head(Hello(os.getpid()))])
        frames = None
        if self._socket.poll(round(timeout_seconds * 1000)):
            frames = self.receive()
        if frames is None:
            raise TransportError(
                f"nothing at {self.address} answered within {timeout_seconds:g} s: check that an "
                "engine is there (streamenc engine ADDRESS -m MODEL)"
            )
        try:
            message = read_engine(frames)
        except WireError as error:
            raise TransportError(f"cannot use the engine at {self.address}: {error}") from None
        if isinstance(message, Refused):
            raise TransportError(f"the engine at {self.address} refuses: {message.why}")
        if not isinstance(message, Welcome):
            raise TransportError(f"the engine at {self.address} did not answer as one")
        return message


def _close(process: int, socket: Any, monitor: Any) -> None:
    if os.getpid() != process:
        return  # a fork: the connection is the other process's
    context = socket.context
    socket.disable_monitor()
    monitor.close(0)
    socket.close(linger=LINGER_MS)
    # It waits until a goodbye is sent, which may take that long.
    threading.Thread(target=context.term, daemon=True).start()
