"""Link: the socket below ZmqSink, ZmqSource and ZmqTextSource, and what may come through it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import zmq

from streamenc.errors import TransportError, UsageError
from streamenc.io.network.peers.curve import Curve
from streamenc.io.network.peers.doorkeeper import Doorkeeper, Peer
from streamenc.io.network.peers.socketfile import SocketFile, check_no_other_file
from streamenc.io.network.wire import MAX_CONTROL_BYTES, MAX_PACKET_BYTES

logger = logging.getLogger(__name__)

RECONNECT_MS = 50
# Messages of subscribers that are read in one go, and the time for it: whoever sends more does not
# stop the stream.
MAX_READS, READ_S = 256, 0.001
# Parts of a message that are read in one go; of more than MAX_KEPT the others are thrown away.
MAX_PARTS, MAX_KEPT = 1024, 3
# A subscriber of mode=pub that neither reads nor answers for so long is disconnected. It may
# connect again, and then starts with what is news.
STUCK_MS = 10_000
HANDSHAKE_MS = 5_000
# What the subscribers of a sink may send beside the messages that it reads.
SPARE_BYTES, ALL_SPARE_BYTES = 16 << 10, 2 << 20
# Subscribers have little to say.
SUBSCRIBERS_BUFFER_BYTES = 32 << 10
HEARTBEATS: dict[zmq.SocketOption, int] = {
    zmq.HEARTBEAT_IVL: STUCK_MS // 4,
    zmq.HEARTBEAT_TIMEOUT: STUCK_MS,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
}
FROM_SUBSCRIBERS: dict[zmq.SocketOption, int] = {
    **HEARTBEATS,
    zmq.MAXMSGSIZE: MAX_CONTROL_BYTES,
    zmq.RCVHWM: 64,
    zmq.RCVBUF: SUBSCRIBERS_BUFFER_BYTES,
}

# Few packets wait in ZeroMQ, which bounds their number alone, and most of them here. Beside whole
# packets publishers send nothing, but those that are on their way.
FROM_PUBLISHERS: dict[zmq.SocketOption, int] = {
    **HEARTBEATS,
    zmq.MAXMSGSIZE: MAX_PACKET_BYTES,
    zmq.RCVHWM: 4,
}
SPARE_OF_PUBLISHERS = 6 * MAX_PACKET_BYTES, 8 * MAX_PACKET_BYTES


EVERYWHERE = ("*", "0.0.0.0", "::")
# Of an encrypted part: its name, a number, what proves it, flags.
CURVE_BYTES = 33


class Message(NamedTuple):
    """What was read.

    parts  Its parts, of more than MAX_KEPT only the first ones.
    peer   Who sent it; None where it has left, or is in a process of this machine.
    """

    parts: list[bytes]
    peer: Peer | None


class Link:
    """One socket in a context of its own. `endpoint` is where it is bound, as an address."""

    def __init__(
        self, address: str, bind: bool, keys: str = "", server: str = "", allow: str = ""
    ) -> None:
        """Raises UsageError; `keys`, `server` and `allow` are those of Curve."""
        self.address = self.endpoint = address
        self._bind = bind
        self._verb = "bind" if bind else "connect to"
        self._context: zmq.Context[Any] | None = None
        self._file: SocketFile | None = None
        self._skipping = False
        self.socket: Any = None
        self.doorkeeper: Doorkeeper | None = None
        try:
            url = urlsplit(address)
            host, port = url.hostname, url.port
        except ValueError as error:
            raise UsageError(f"address {address!r}: {error}") from None
        self._path = url.path if url.scheme == "zmq+ipc" else ""
        self._curve = Curve(address, bind, keys, server, allow)
        self._open_to_all = False
        if url.scheme == "zmq+ipc":
            if host or not self._path:
                raise UsageError(f"address {address!r} must be zmq+ipc:///path")
            self._target = f"ipc://{self._path}"
            return
        if url.scheme != "zmq+tcp" or not host or port is None or url.path not in ("", "/"):
            raise UsageError(f"address {address!r} must be zmq+tcp://host:port")
        if not bind and (host == "*" or not port):
            raise UsageError(f"address {address!r} needs a host and a port to connect to")
        if bind and host == "localhost":
            host = "127.0.0.1"  # ZeroMQ binds to addresses, not to names
        self._target = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._open_to_all = bind and host in EVERYWHERE

    def open(
        self,
        kind: int,
        settings: Mapping[zmq.SocketOption, int],
        spare_bytes: int = SPARE_BYTES,
        all_spare_bytes: int = ALL_SPARE_BYTES,
    ) -> None:
        """Raises TransportError where the address cannot be bound or connected to.

        spare_bytes  What a peer may send that is not read as messages; all of them together may
                     send `all_spare_bytes`.
        """
        if self._path:
            check_no_other_file(self.address, self._path, self._verb)
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.IPV6, int("[" in self._target))
        # Shorter than a publisher waits for those that were there before it.
        self.socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        for option, value in settings.items():
            self.socket.set(option, value)
        porter = self._curve.apply(self._context, self.socket)
        self.doorkeeper = Doorkeeper(
            self._context, self.socket, self.address, spare_bytes, all_spare_bytes, porter
        )
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        try:
            if not self._bind:
                self.socket.connect(self._target)
                return
            if self._path:
                self._file = SocketFile(self.address, self._path)
                self.socket.set(zmq.USE_FD, self._file.fd)
            self.socket.bind(self._target)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                cure = "stop what uses it, or take another port"
            else:
                cure = "check host and port"
            raise TransportError(
                f"cannot {self._verb} {self.address}: {zmq.strerror(error.errno or 0)}; {cure}"
            ) from None
        self.endpoint = "zmq+" + self.socket.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")
        logger.info("bound to %s", self.endpoint)
        if self._open_to_all and not self._curve.active:
            logger.warning(
                "%s is open to everybody who can reach this machine: bind to 127.0.0.1, or let in "
                "those alone whose keys you know (keys=FILE&allow=FILE)",
                self.endpoint,
            )

    async def readable(self, timeout_s: float) -> bool:
        """Whether there is something to read, as soon as there is, or the time is over."""
        # By `poll`, not by what `zmq.asyncio` looks at: only the former lets other threads run
        # while ZeroMQ reads what a peer sends without end.
        if self._poller.poll(0):
            return True
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self.socket.get(zmq.FD)
        loop.add_reader(descriptor, changed.set)
        try:
            with anyio.move_on_after(timeout_s):
                while True:
                    await changed.wait()
                    changed.clear()
                    if self._poller.poll(0):
                        return True
        finally:
            loop.remove_reader(descriptor)
        return bool(self._poller.poll(0))

    def messages(self) -> Iterator[Message]:
        """What is there to be read, as much of it as is to be read in one go."""
        until_s = time.monotonic() + READ_S
        for _ in range(MAX_READS):
            message = self.receive() if time.monotonic() < until_s else None
            if message is None:
                return
            yield message

    def receive(self) -> Message | None:
        """The next message, None where there is none yet. Never waits."""
        assert self.doorkeeper is not None, "receive before open"
        if self._skipping:
            self._skip()
            return Message([], None)
        try:
            part = self.socket.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        parts, size = [part.bytes], self._sent_bytes(part)
        while part.more and len(parts) < MAX_KEPT:
            part = self.socket.recv(zmq.DONTWAIT, copy=False)
            parts.append(part.bytes)
            size += self._sent_bytes(part)
        self._skipping = part.more
        try:
            peer = self.doorkeeper.peer(part.get(zmq.SRCFD))
        except zmq.ZMQError:  # made by ZeroMQ itself, for somebody who left
            peer = None
        if peer is not None:
            peer.known += size
            peer.messages += 1
        return Message(parts, peer)

    def _sent_bytes(self, part: Any) -> int:
        """What a part was on its way."""
        size = len(part) + (CURVE_BYTES if self._curve.active else 0)
        return size + (2 if size < 256 else 9)

    def _skip(self) -> None:
        for _ in range(MAX_PARTS):
            if not self.socket.recv(zmq.DONTWAIT, copy=False).more:
                self._skipping = False
                return

    def send(self, *parts: bytes) -> None:
        """Raises zmq.Again where this would block, ZMQError where the receiver is gone."""
        self.socket.send_multipart(parts, zmq.DONTWAIT)

    def throw_out(self, peer: Peer | None, why: str) -> None:
        if peer is not None and self.doorkeeper is not None:
            self.doorkeeper.throw_out(peer, why)

    @property
    def peers(self) -> list[Peer]:
        """Who is connected."""
        return self.doorkeeper.peers if self.doorkeeper else []

    @property
    def remarks(self) -> list[str]:
        thrown, refused = (
            self.doorkeeper.thrown if self.doorkeeper else 0,
            self._curve.refused.count,
        )
        told = {
            f"{thrown} peers were thrown out; the log says why": thrown,
            f"{refused} times somebody was refused whose key is not allowed": refused,
        }
        return [sentence for sentence, count in told.items() if count]

    @property
    def refusal(self) -> str:
        """Why nobody is at the other end, though something is there, in words; "" where it is not
        known, or somebody is."""
        if self.doorkeeper is None or self.doorkeeper.shaken:
            return ""
        match self.doorkeeper.refusal:
            case 0:
                return ""
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "something is there, and our key is not among those that it allows"
            case _ if self._curve.active:
                return (
                    "something is there, and it is not who has the key that was given as 'server', "
                    "or it has no keys at all"
                )
            case _:
                return "something is there, and it wants keys ('keys', 'server'), or is no ZeroMQ"

    async def aclose(self, linger_s: float) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        assert self.doorkeeper is not None
        with anyio.CancelScope(shield=True):
            self.doorkeeper.stop()
            self.socket.close(linger=int(linger_s * 1000))
            if self._file is not None:
                self._file.remove()
            await anyio.to_thread.run_sync(context.term)
