"""The parts below ZmqSink and ZmqSource: a socket, and the two ways of sending to subscribers."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import zmq
import zmq.asyncio

from streamenc.errors import TransportError, UsageError, WireError
from streamenc.graph.frames import Frame
from streamenc.io.network.packets import Complaints, PacketWriter
from streamenc.io.network.wire import HEADER_BYTES, MAGIC, MAX_CONTROL_BYTES, Bye, Credit, decode

logger = logging.getLogger(__name__)

MAX_SUBSCRIBERS = 256
MAX_WINDOW = 1024
RECONNECT_MS = 50
MAX_PATH_BYTES = 108  # sockaddr_un's
# Messages of subscribers that are read in one go: whoever sends more does not stop the stream.
MAX_READS = 256
# A subscriber of mode=pub that neither reads nor answers for so long is disconnected. It may
# connect again, and then starts with what is news.
STUCK_MS = 10_000


class Link:
    """One socket in a context of its own. `endpoint` is where it is bound, as an address."""

    def __init__(self, address: str, bind: bool) -> None:
        self.address = self.endpoint = address
        self._bind = bind
        self._verb = "bind" if bind else "connect to"
        self._context: zmq.asyncio.Context | None = None
        self.socket: Any = None
        try:
            url = urlsplit(address)
            host, port = url.hostname, url.port
        except ValueError as error:
            raise UsageError(f"address {address!r}: {error}") from None
        self._path = url.path if url.scheme == "zmq+ipc" else ""
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

    def open(self, kind: int, settings: Mapping[zmq.SocketOption, int]) -> None:
        """Raises TransportError where the address cannot be bound or connected to."""
        if self._path and _is_other_file(self._path):
            raise TransportError(
                f"cannot {self._verb} {self.address}: {self._path} is there and is no socket; "
                "take another path"
            )
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(kind)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.IPV6, int("[" in self._target))
        # Shorter than a publisher waits for those that were there before it.
        self.socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        for option, value in settings.items():
            self.socket.set(option, value)
        try:
            if not self._bind:
                self.socket.connect(self._target)
                return
            if self._path and _is_served(self._path):
                raise zmq.ZMQError(zmq.EADDRINUSE)  # ZeroMQ itself would take the path over
            self.socket.bind(self._target)
        except zmq.ZMQError as error:
            place = "path" if self._path else "port"
            if error.errno == zmq.EADDRINUSE:
                cure = f"stop what uses it, or take another {place}"
            elif self._path:
                cure = (
                    "its folder must be there and yours to write to, and the path shorter than "
                    f"{MAX_PATH_BYTES} bytes"
                )
            else:
                cure = "check host and port"
            raise TransportError(
                f"cannot {self._verb} {self.address}: {zmq.strerror(error.errno or 0)}; {cure}"
            ) from None
        self.endpoint = "zmq+" + self.socket.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")
        logger.info("bound to %s", self.endpoint)

    def receive(self) -> list[bytes] | None:
        """The parts of the next message, None where there is none yet. Never waits."""
        try:
            parts: list[bytes] = self.socket.recv_multipart(zmq.DONTWAIT).result()
        except zmq.Again:
            return None
        return parts

    def send(self, *parts: bytes) -> None:
        """Raises zmq.Again where this would block, ZMQError where the receiver is gone."""
        self.socket.send_multipart(parts, zmq.DONTWAIT).result()

    async def aclose(self, linger_s: float) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        self.socket.close(linger=int(linger_s * 1000))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(context.term)


def _is_other_file(path: str) -> bool:
    """Whether something is there that is no socket: ZeroMQ would replace even a regular file."""
    try:
        return not stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):  # it is not there, or cannot be
        return False


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


class Broadcast:
    """The sink's end in mode=pub.

    subscribers  Subscriptions that our packets match, as far as they were read.
    dropped      Frames that found a subscriber full. With a single subscriber each such frame is
                 lost and the next one flagged. With several, the others still get it, and who
                 missed it finds a jump of seq; of a row of misses only the first may be counted.
    unheard      Frames that nobody was subscribed to.
    """

    kind = zmq.XPUB

    def __init__(self, link: Link, writer: PacketWriter, hwm: int) -> None:
        self._link, self._writer = link, writer
        self.subscribers = self.dropped = self.unheard = 0
        self.settings = {
            zmq.SNDHWM: hwm,
            zmq.XPUB_NODROP: 1,
            zmq.XPUB_VERBOSER: 1,
            zmq.MAXMSGSIZE: MAX_CONTROL_BYTES,
            zmq.HEARTBEAT_IVL: STUCK_MS // 4,
            zmq.HEARTBEAT_TIMEOUT: STUCK_MS,
        }

    @property
    def remarks(self) -> list[str]:
        told = []
        if self.unheard:
            told.append(
                f"{self.unheard} frames had no subscriber; start it first, let the publisher wait "
                "for it (wait_subscribers=1), or use mode=credit at both ends"
            )
        if self.dropped:
            told.append(
                f"{self.dropped} frames found a subscriber full, which missed them; let it read "
                "faster, raise 'hwm' at both ends, or use mode=credit at both, where the stream "
                "waits for it"
            )
        return told

    def read(self) -> None:
        """Reads subscriptions. A new one gets the info before any data."""
        joined = False
        for _ in range(MAX_READS):
            parts = self._link.receive()
            if parts is None:
                break
            change, topic = parts[0][:1], parts[0][1:]
            if len(parts) > 1 or not _matches(topic):
                continue
            if change == b"\x01":
                self.subscribers += 1
                joined = True
            elif change == b"\x00":
                self.subscribers = max(0, self.subscribers - 1)
        if joined:
            self.beat()

    def beat(self) -> None:
        self._send(self._writer.info)

    def ready(self) -> bool:
        self.read()
        return True

    def write(self, frame: Frame) -> None:
        packet = self._writer.packet(frame)
        if self._send(packet):
            self.unheard += not self.subscribers
            self._writer.sent(frame)
            return
        self.dropped += 1
        if self.subscribers > 1:
            self._link.socket.set(zmq.XPUB_NODROP, 0)
            self._link.send(packet)
            self._link.socket.set(zmq.XPUB_NODROP, 1)
            self._writer.sent(frame)
        else:
            self._writer.dropped(frame)

    def finished(self, broken: str) -> bool:
        """Tries to send the end. False where somebody has no room for it yet."""
        return self._send(self._writer.end(broken))

    def _send(self, packet: bytes) -> bool:
        try:
            self._link.send(packet)
        except zmq.Again:
            return False
        return True


def _matches(topic: bytes) -> bool:
    """Whether a subscription to `topic` gets data: all packets, or only some kinds of them."""
    return MAGIC.startswith(topic[: len(MAGIC)]) and len(topic) <= HEADER_BYTES


@dataclass
class _Subscriber:
    sent: int = 0
    limit: int = 0
    received: int = 0
    heard_s: float = 0.0


class Credited:
    """The sink's end in mode=credit."""

    kind = zmq.ROUTER

    dropped = unheard = 0
    # What is sent is bounded by the subscriber's credit, so the high-water mark is never met.
    settings = {
        zmq.SNDHWM: 2 * MAX_WINDOW,
        zmq.ROUTER_MANDATORY: 1,
        zmq.MAXMSGSIZE: MAX_CONTROL_BYTES,
    }

    def __init__(self, link: Link, writer: PacketWriter, timeout_s: float) -> None:
        self._link, self._writer, self._timeout_s = link, writer, timeout_s
        self._known: dict[bytes, _Subscriber] = {}
        self._malformed, self._forgotten = Complaints(), Complaints()
        self._ended = False

    @property
    def subscribers(self) -> int:
        return len(self._known)

    @property
    def remarks(self) -> list[str]:
        given_up = self._forgotten.count
        if not given_up:
            return []
        return [f"{given_up} subscribers were given up; the last one {self._why}"]

    def read(self) -> None:
        for _ in range(MAX_READS):
            parts = self._link.receive()
            if parts is None:
                return
            try:
                got = decode(parts[-1])
                if len(parts) != 2 or not isinstance(got, Credit | Bye):
                    raise WireError(f"got {type(got).__name__} in {len(parts)} parts")
            except WireError as error:
                self._malformed.warn(
                    f"a subscriber of {self._link.address} talks nonsense: {error}"
                )
                continue
            if isinstance(got, Credit):
                self._credit(parts[0], got)
            else:
                self._known.pop(parts[0], None)

    def _credit(self, name: bytes, got: Credit) -> None:
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= MAX_SUBSCRIBERS:
                self._malformed.warn(
                    f"{self._link.address} has {MAX_SUBSCRIBERS} subscribers: full"
                )
                return
            # One that was given up, or whose connection broke, goes on with the frames to come.
            known = _Subscriber(sent=got.received if got.stream == self._writer.stream else 0)
            self._known[name] = known
            self._send(name, self._writer.info)
        known.heard_s = time.monotonic()
        if got.stream in (0, self._writer.stream):
            known.received = max(known.received, min(got.received, known.sent))
            known.limit = known.received + min(got.window, MAX_WINDOW)

    def beat(self) -> None:
        silent_since = time.monotonic() - self._timeout_s
        for name, known in list(self._known.items()):
            if known.heard_s < silent_since:
                self._forget(name, f"was silent for {self._timeout_s:g} s")
            else:
                self._send(name, self._writer.info)

    def ready(self) -> bool:
        self.read()
        return bool(self._known) and all(s.sent < s.limit for s in self._known.values())

    def write(self, frame: Frame) -> None:
        packet = self._writer.packet(frame)
        for name, known in list(self._known.items()):
            if self._send(name, packet):
                known.sent += 1
        self._writer.sent(frame)

    def finished(self, broken: str) -> bool:
        """Sends the end, once. False while there are subscribers that did not say goodbye."""
        if not self._ended:
            self._ended = True
            for name in list(self._known):
                self._send(name, self._writer.end(broken))
        return not self._known

    def _send(self, name: bytes, packet: bytes) -> bool:
        try:
            self._link.send(name, packet)
        except zmq.ZMQError as error:
            self._forget(name, f"cannot be reached ({error})")
            return False
        return True

    def _forget(self, name: bytes, why: str) -> None:
        self._why = why
        self._forgotten.warn(f"dropped a subscriber of {self._link.address}: it {why}")
        self._known.pop(name, None)
