"""Listens in a room of a server: `ws://host:port/v1/room/NAME`, or `wss://` with TLS.

One can join at any time. A connection that breaks is made again, and what came in between is lost,
and counted. docs/server describes rooms.
"""

from __future__ import annotations

from streamenc import options
from streamenc.errors import TransportError
from streamenc.io.network.packetsource import PacketSource
from streamenc.io.network.websocket.dialing import ClientConnection, ConnectionClosed
from streamenc.io.network.websocket.livemessages import Error, Listen
from streamenc.io.network.websocket.rooms.roomlink import RoomLink, ending, hang_up, said

POLICIES = ("drop_oldest", "block", "close")
CURE = (
    "read faster or raise 'window' where this end was too slow; a room keeps nothing for who is "
    "away"
)


class RoomSource(PacketSource):
    """Reads the stream that somebody produces in a room.

    address     ws://host[:port]/v1/room/NAME, or wss:// with TLS.
    key         What the server knows us by.
    key_file    A file with the key in its first line.
    window      Packets that may wait at the server before some are dropped.
    policy      What happens beyond those: "drop_oldest", which counts and flags it; "block": all
                wait a moment; "close".
    timeout_s   Opening waits so long for a stream; later, a server that is gone is looked for so
                long.
    max_age_ms  Frames that are late by more are dropped, counted and the next one flagged; 0 drops
                none.
    ca_file     wss: certificates to trust; the system's where "".
    insecure    wss: trusts anybody.
    """

    live = True

    def __init__(
        self,
        address: str,
        key: str = "",
        key_file: str = "",
        window: int | str = 64,
        policy: str = "drop_oldest",
        timeout_s: float | str = 30.0,
        max_age_ms: float | str = 0.0,
        ca_file: str = "",
        insecure: bool | str = False,
    ) -> None:
        self._link = RoomLink(address, key, key_file, ca_file, insecure)
        window = options.integer("window", window, 1, 4096)
        super().__init__(self._link.name, timeout_s, max_age_ms, window, CURE)
        options.choice("policy", policy, POLICIES)
        self._listen = Listen(window=window, policy=policy)  # type: ignore[arg-type]
        self._socket: ClientConnection | None = None

    async def _connect(self) -> None:
        self._socket, _ = await self._link.enter(self._listen, self._timeout_s)

    async def _pump(self) -> None:
        while True:
            await self._read()
            if self._reader.ended:
                return
            await self._disconnect()
            try:
                self._socket, _ = await self._link.enter(self._listen, self._timeout_s, again=True)
            except TransportError as error:
                self._gone("the connection to the room was lost")
                raise self._link.gave_up(self._timeout_s, error) from None

    async def _read(self) -> None:
        """Until the connection breaks, or the stream ends."""
        socket = self._socket
        assert socket is not None
        last: Error | None = None
        try:
            while not self._reader.ended:
                while not self._has_room():
                    await self._room.wait()
                message = await socket.recv()
                if isinstance(message, bytes):
                    self._take(message)
                elif isinstance(got := said(message), Error):
                    last = got
        except ConnectionClosed:
            why = ending(socket, last)
            if why.code != "idle":  # where nobody produces yet, we come again
                self._link.lost(why)
            self._tell()

    def _sentences(self) -> list[str]:
        return [*super()._sentences(), *self._link.remarks]

    async def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await hang_up(socket)
