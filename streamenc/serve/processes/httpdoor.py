"""HttpDoor: uvicorn with bounds on time, on connections, and on what waits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from streamenc.serve.limits import Limits

MAX_HEAD_BYTES = 16 * 2**10
KEEP_ALIVE_SECONDS = 15
PING_SECONDS = 20.0
# Messages of a WebSocket that may wait before nothing more is read from it.
UNREAD = 4
# Of one process: those of streams, and others beside them.
SPARE_CONNECTIONS = 512
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpDoor(Server):
    """One server of an application on a socket that is bound already; leaves signals alone."""

    def __init__(
        self, app: Any, bound: socket.socket, limits: Limits, tls: ssl.SSLContext | None = None
    ) -> None:
        self.limits = limits
        self.max_connections = 2 * limits.sessions + SPARE_CONNECTIONS
        # That have not said yet what they want, the oldest first.
        self.silent: dict[BoundedHttp, None] = {}
        self.listening = asyncio.Event()
        self._bound, self._tls = bound, tls
        config = Config(
            app,
            loop="asyncio",
            http="h11",
            ws=BoundedSocket,
            ws_max_size=limits.max_message_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return BoundedHttp(
                self, config=self.config, server_state=self.server_state, app_state={}, _loop=loop
            )

        self.servers = [
            await loop.create_server(
                protocol,
                sock=self._bound,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.handshake_seconds if self._tls else None,
                ssl_shutdown_timeout=1.0 if self._tls else None,
                backlog=self.config.backlog,
            )
        ]
        self.started = True
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def has_room(self) -> bool:
        """For one more connection; those that have said nothing make room for it."""
        if len(self.server_state.connections) < self.max_connections:
            return True
        oldest = next(iter(self.silent), None)
        if oldest is None:
            return False
        oldest.give_up()
        return True


class BoundedHttp(H11Protocol):
    """A connection that must say what it wants in time, and go on saying it."""

    def __init__(self, door: HttpDoor, **how: Any) -> None:
        super().__init__(**how)
        self._door = door
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self._door.has_room():
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self.flow is not None:  # it was let in
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.flow is None:
            return
        self._came += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._stop()
        elif self.conn.their_state is h11.SEND_BODY:
            self._wait_for_body()
        elif self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            # Another request, of which a part has come.
            if self.timeout_keep_alive_task is None:
                self._wait_for_head()
        else:
            self._stop()

    def give_up(self) -> None:
        """Whatever it wanted, it took too long."""
        self._stop()
        self.transport.abort()

    def _wait_for_head(self) -> None:
        if self not in self._door.silent:
            self._stop()
            self._door.silent[self] = None
            self._timer = self.loop.call_later(self._door.limits.handshake_seconds, self.give_up)

    def _wait_for_body(self) -> None:
        """Something of it must come every now and then, for as long as we read."""
        if self._timer is None or self in self._door.silent:
            self._stop()
            self._look_at(self._came)

    def _look_at(self, came: int) -> None:
        seconds = self._door.limits.idle_seconds or self._door.limits.handshake_seconds
        self._timer = self.loop.call_later(seconds, self._still_coming, came)

    def _still_coming(self, before: int) -> None:
        if self._came == before and not self.flow.read_paused:
            self.give_up()
        else:
            self._look_at(self._came)

    def _stop(self) -> None:
        self._door.silent.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose answers to pings wait for nobody who does not read them.

    And which ends where the head of the upgrade is refused, as one with too many headers is. It
    goes on reading while a few messages wait: to stop for each costs two system calls.
    """

    def send_receive_event_to_app(self) -> None:
        paused = self.read_paused
        self.read_paused = paused or self.queue.qsize() < UNREAD
        super().send_receive_event_to_app()
        if self.queue.qsize() <= UNREAD:
            self.read_paused = paused

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(BAD_REQUEST)
            self.transport.close()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent and self.initial_response is not None:
            self.handshake_complete = True  # else an error is logged for each that is turned away

    def handle_ping(self) -> None:
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)
