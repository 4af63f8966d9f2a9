"""Courier: carries what a Ledger has to send and to take, over one connection after the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from streamenc.errors import StreamencError, TransportError
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.websocket.dialing import (
    BACKOFF_S,
    ClientConnection,
    ConnectionClosed,
    Dialer,
)
from streamenc.io.network.websocket.ending import Ending, ending_of
from streamenc.io.network.websocket.ledger import Came, Ledger
from streamenc.io.network.websocket.livemessages import Error, GoAway

logger = logging.getLogger(__name__)

# Connections in a row that a server's errors may end, without anything having come of them.
MAX_FAILURES = 8
# A server that just got the news of a stream may not find it yet, or another one holds it still.
EXPIRED_S = 3.0
HANG_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a courier waits for what; as `connect` has them.

    Attributes:
        full_seconds: A server that is full is asked again for so long, at first.
        answer_seconds: Within which a new connection must say something.
        give_up_seconds: After a disconnection; None for as long as the server keeps the stream.
    """

    full_seconds: float
    answer_seconds: float
    give_up_seconds: float | None


class Courier:
    """Runs until the stream is closed, or cannot go on.

    Attributes:
        connections: How many were made.
        bytes_sent, bytes_received: Of messages, those that were sent again among them.
        ping_seconds: How long the last ping took; 0 where none came back.
    """

    def __init__(
        self,
        ledger: Ledger,
        dialer: Dialer,
        patience: Patience,
        take: Callable[[Came], None],
    ) -> None:
        """`take` gets what came and is news."""
        self._ledger, self._dialer, self._patience, self._take = ledger, dialer, patience, take
        self._stirred = asyncio.Event()
        self._more_s = 0.0
        self._socket: ClientConnection | None = None
        self.connections = self.bytes_sent = self.bytes_received = 0

    @property
    def ping_seconds(self) -> float:
        return self._socket.latency if self._socket else 0.0

    def stir(self) -> None:
        """Something may be to send."""
        self._stirred.set()

    async def run(self) -> None:
        """Raises StreamencError where the stream cannot go on."""
        ledger = self._ledger
        lost_s = time.monotonic()
        pause_s, failures, expired = 0.0, 0, 0
        while True:
            until = lost_s + self._limit_seconds()
            await asyncio.sleep(min(pause_s, max(0.0, until - time.monotonic())))
            before, resumed = (ledger.received, ledger.acked, bool(ledger.token)), ledger.resumed
            ending = await self._once(until)
            if ledger.closed is not None:
                return
            name = self._dialer.name
            logger.info("lost %s: %s", name, ending.why)
            if ending.code == "idle":
                # It waits at the server, as it would after any disconnection.
                await self._something_to_send(ending.failure(name))
                lost_s = time.monotonic()
                continue
            came = before != (ledger.received, ledger.acked, bool(ledger.token))
            if came or ledger.resumed > resumed:
                lost_s, expired = time.monotonic(), 0
                if came or not ending.code:
                    failures = 0
            failures += bool(ending.code)
            expired += ending.code == "expired"
            waited_s = time.monotonic() - lost_s
            searching = expired and (expired < self._dialer.addresses or waited_s < EXPIRED_S)
            if ending.final and not searching:
                raise ending.failure(name)
            if failures > MAX_FAILURES or waited_s > self._limit_seconds():
                raise ending.failure(name)
            if ending.code:
                self._dialer.turn()
            pause_s = min(max(BACKOFF_S[0], 2 * pause_s), BACKOFF_S[1]) if not came else 0.0

    def _limit_seconds(self) -> float:
        """How long to look for a server."""
        opened = self._ledger.opened
        if opened is None:
            return self._patience.full_seconds
        given_s = self._patience.give_up_seconds
        kept_s = opened.resume_seconds if given_s is None else given_s
        return kept_s + self._more_s

    async def _something_to_send(self, failure: StreamencError) -> None:
        """Raises `failure` where there is nothing for as long as the server keeps the stream."""
        try:
            async with asyncio.timeout(self._limit_seconds()):
                while not self._ledger.unsent:
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            raise failure from None

    async def _once(self, until: float) -> Ending:
        """One connection, from its greeting to its end. Raises StreamencError."""
        again = bool(self._ledger.token)
        try:
            socket = await self._dialer.dial(until, resume=again, patient=again)
        except TransportError as error:
            if not again:
                raise
            raise TransportError(
                f"the stream is lost: no server was found within {self._limit_seconds():g} s: "
                f"{error}"
            ) from None
        self.connections += 1
        self._socket = socket
        writing: asyncio.Task[None] | None = None
        try:
            for message in self._ledger.greeting():
                await self._send(socket, message)
            writing = asyncio.create_task(self._write(socket))
            return await self._read(socket)
        except ConnectionClosed:
            return _ended(socket, None)
        finally:
            self._ledger.lost()
            self._socket = None
            await end_task(writing)
            await _hang_up(socket)

    async def _read(self, socket: ClientConnection) -> Ending:
        last: Error | None = None
        answered, answer_s = False, self._patience.answer_seconds
        while True:
            try:
                async with asyncio.timeout(None if answered else answer_s):
                    message = await socket.recv()
            except TimeoutError:
                return Ending("", f"no answer came within {answer_s:g} s", False)
            except ConnectionClosed:
                return _ended(socket, last)
            answered = True
            self.bytes_received += len(message)
            came = self._ledger.take(message)
            self._stirred.set()
            if isinstance(came, Error) and came.fatal:
                last = came
                continue
            if came is not None:
                self._take(came)
            if isinstance(came, GoAway):
                self._more_s = came.seconds
                if not self._dialer.alone:
                    return Ending("ending", f"the server ends ({came.why})", False)

    async def _write(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                self._stirred.clear()
                while (message := self._ledger.sendable()) is not None:
                    await self._send(socket, message)
                await self._stirred.wait()

    async def _send(self, socket: ClientConnection, message: bytes | str) -> None:
        await socket.send(message)
        self.bytes_sent += len(message)


def _ended(socket: ClientConnection, error: Error | None) -> Ending:
    ending = ending_of(error, socket.close_code, socket.close_reason or "")
    if not ending.code and not ending.final and socket.protocol.close_sent is not None:
        if socket.protocol.close_rcvd is None:  # we have hung up
            return Ending("silent", "the other end was silent for too long", False)
    return ending


async def _hang_up(socket: ClientConnection) -> None:
    """In an orderly way where the other end is there, and soon in any case."""
    with suppress(TimeoutError, StreamencError):
        async with asyncio.timeout(HANG_UP_S):
            await socket.close()
    socket.transport.abort()
