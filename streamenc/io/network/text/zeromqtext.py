"""Text over ZeroMQ: `text+zmq+tcp://host:port`, `text+zmq+ipc:///path`, a message a segment."""

from __future__ import annotations

import anyio
import zmq

from streamenc import options
from streamenc.io.network.text.messagesource import MessageSource
from streamenc.io.network.zeromq_link import FROM_PUBLISHERS, SPARE_OF_PUBLISHERS, Link
from streamenc.io.text.transcript import MAX_BYTES, Reading

SOCKETS = {"sub": zmq.SUB, "pull": zmq.PULL}
POLL_S = 1.0


class ZmqTextSource(MessageSource):
    """Takes messages of text, in UTF-8 or as JSON: the last part of each is a segment.

    address    text+zmq+tcp://host:port or text+zmq+ipc:///path.
    socket     sub, for a PUB socket, which waits for nobody, or pull, for a PUSH socket, which
               waits.
    topic      sub: what messages have to begin with, in their first part.
    bind       Whether this end binds the address; the other end then connects.
    queue      Messages that may wait here. With sub, the oldest are lost above, and counted.
    keys, allow, server  As of ZmqSink.
    format, partials, max_bytes  As of TextSource.
    """

    def __init__(
        self,
        address: str,
        socket: str = "sub",
        topic: str = "",
        bind: bool | str = False,
        queue: int | str = 256,
        format: str = "",
        partials: bool | str = False,
        max_bytes: int | str = MAX_BYTES,
        keys: str = "",
        allow: str = "",
        server: str = "",
    ) -> None:
        super().__init__(Reading.checked(format, partials, max_bytes), queue)
        self.address = address
        self._socket, self._topic = options.choice("socket", socket, SOCKETS), topic
        self.live = socket == "sub"
        self._link = Link(
            address.removeprefix("text+"), options.flag("bind", bind), keys, server, allow
        )

    @property
    def endpoint(self) -> str:
        return f"text+{self._link.endpoint}"

    async def _connect(self) -> None:
        self._link.open(SOCKETS[self._socket], FROM_PUBLISHERS, *SPARE_OF_PUBLISHERS)
        if self.live:
            self._link.socket.subscribe(self._topic.encode())

    async def _pump(self) -> None:
        while True:
            if not self.live and self._full():
                await self._room.wait()
            elif await self._link.readable(POLL_S):
                for parts, _ in self._link.messages():
                    if parts:
                        self._take(parts[-1])
                    if not self.live and self._full():
                        break
            await anyio.lowlevel.checkpoint()

    async def _disconnect(self) -> None:
        await self._link.aclose(0)
