"""RoomLink: a room of a server, as the ends of a stream in it come to it again and again."""

from __future__ import annotations

import asyncio
import re
import time
from urllib.parse import urlsplit

from streamenc import options
from streamenc.addresses import shown_address
from streamenc.errors import TransportError, UsageError
from streamenc.io.network.packets import Complaints
from streamenc.io.network.websocket.dialing import (
    ClientConnection,
    ConnectionClosed,
    Dialer,
    Line,
    read_key,
    trusting,
)
from streamenc.io.network.websocket.ending import Ending, ending_of
from streamenc.io.network.websocket.livemessages import (
    Error,
    FromServer,
    Listen,
    Listening,
    Produce,
    Producing,
    encode_message,
    read_from_server,
)

_PATH = re.compile(r"(/[^/]+)*/v1/room/[A-Za-z0-9._~-]{1,64}")
HANG_UP_S = 1.0


class RoomLink:
    """Where a room is, and how often the connection to it was lost.

    Attributes:
        name: The address, for people.

    Raises:
        UsageError: For an address that is no room's, or a key that cannot be read.
    """

    def __init__(
        self, address: str, key: str, key_file: str, ca_file: str, insecure: bool | str
    ) -> None:
        self.name = shown_address(address)
        try:
            path = urlsplit(address).path
        except ValueError:
            path = ""
        if not _PATH.fullmatch(path):
            raise UsageError(
                f"got {self.name!r}; encoded streams go into rooms of a server, and come from "
                "there: write ws://HOST:PORT/v1/room/NAME. To have a server encode sound or "
                "images, use streamenc.client in Python"
            )
        if key and key_file:
            raise UsageError("got 'key' and 'key_file'; one of them is enough")
        tls = trusting(ca_file, options.flag("insecure", insecure))
        line = Line(read_key(key_file) if key_file else key, tls=tls)
        self._dialer = Dialer([address], path, line)
        self._losses = Complaints()

    @property
    def remarks(self) -> list[str]:
        times = self._losses.count
        return [f"{self.name} was lost {times} times, and connected to again"] if times else []

    async def enter(
        self, first: Produce | Listen, seconds: float, *, again: bool = False
    ) -> tuple[ClientConnection, Producing | Listening]:
        """A connection in the room.

        Args:
            seconds: For how long to try.
            again: Whether we were there before, and a server that is gone may come back.

        Raises:
            StreamencError: Where we are not let in, or there is no server.
        """
        until = time.monotonic() + seconds
        while True:
            socket = await self._dialer.dial(until, patient=again)
            try:
                ending = await self._greet(socket, first)
            except BaseException:  # whatever it is, nobody else closes it
                await hang_up(socket)
                raise
            if not isinstance(ending, Ending):
                return socket, ending
            await hang_up(socket)
            if ending.final or time.monotonic() >= until:
                raise ending.failure(self.name)
            await asyncio.sleep(0.2)

    async def _greet(
        self, socket: ClientConnection, first: Produce | Listen
    ) -> Producing | Listening | Ending:
        error = None
        try:
            async with asyncio.timeout(10.0):
                await socket.send(encode_message(first))
                while True:
                    got = said(await socket.recv())
                    if isinstance(got, Producing | Listening):
                        return got
                    if isinstance(got, Error):
                        error = got
        except TimeoutError:
            return Ending("", "it does not answer", False)
        except ConnectionClosed:
            return ending(socket, error)

    def lost(self, ending: Ending) -> None:
        """The connection is gone. Raises StreamencError where there is no other to be had."""
        if ending.final:
            raise ending.failure(self.name)
        self._losses.warn(f"lost {self.name}: {ending.why}")

    def gave_up(self, seconds: float, error: TransportError) -> TransportError:
        return TransportError(f"{self.name} was not there again within {seconds:g} s: {error}")


def said(message: str | bytes) -> FromServer | None:
    """A message of the server; None for a packet. Raises WireError."""
    return read_from_server(message) if isinstance(message, str) else None


def ending(socket: ClientConnection, error: Error | None) -> Ending:
    return ending_of(error, socket.close_code, socket.close_reason or "")


async def hang_up(socket: ClientConnection) -> None:
    """In an orderly way where the other end is there, and soon in any case."""
    try:
        async with asyncio.timeout(HANG_UP_S):
            await socket.close()
    except TimeoutError:
        pass
    finally:
        socket.transport.abort()
