"""The parts below ZmqSink and ZmqSource: a socket, and the two ways of sending to subscribers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import zmq

from streamenc.errors import TransportError, UsageError, WireError
from streamenc.graph.frames import Frame
from streamenc.io.network.packets import Complaints, PacketWriter
from streamenc.io.network.peers.doorkeeper import Doorkeeper, Peer
from streamenc.io.network.peers.patience import Patience
from streamenc.io.network.peers.socketfile import SocketFile, check_no_other_file
from streamenc.io.network.wire import (
    HEADER_BYTES,
    MAGIC,
    MAX_CONTROL_BYTES,
    MAX_PACKET_BYTES,
    Bye,
    Credit,
    decode,
)

logger = logging.getLogger(__name__)

MAX_SUBSCRIBERS = 256
MAX_WINDOW = 1024
RECONNECT_MS = 50
# Messages of subscribers that are read in one go, and the time for it: whoever sends more does not
# stop the stream.
MAX_READS, READ_S = 256, 0.005
# Parts of a message that are read in one go; of more than MAX_KEPT the others are thrown away.
MAX_PARTS, MAX_KEPT = 1024, 3
# A subscriber of mode=pub that neither reads nor answers for so long is disconnected. It may
# connect again, and then starts with what is news.
STUCK_MS = 10_000
HANDSHAKE_MS = 5_000
# What the subscribers of a sink may send beside the messages that it reads.
SPARE_BYTES, ALL_SPARE_BYTES = 16 << 10, 2 << 20
# Subscribers have little to say: whoever says more floods.
SUBSCRIBERS_BUFFER_BYTES = 32 << 10
MAX_SUBSCRIPTIONS, MAX_TOPICS_BYTES = 256, 1024
SPARE_MESSAGES, MESSAGES_PER_S = 256, 20
# mode=credit: what may be on its way to all subscribers together, beside a packet for each.
MAX_FLYING_BYTES = 256 << 20
# What is kept for a subscriber that has taken nothing yet, so that no other waits for it; packets
# are shared by all for whom they are kept.
MAX_KEPT_PACKETS, MAX_KEPT_BYTES = 4096, 16 << 20
# Where all places are taken, one that has taken nothing for so long loses its own to a newcomer.
STRANGERS_PLACE_S = 1.0
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


class Message(NamedTuple):
    """What was read.

    parts  Its parts, of more than MAX_KEPT only the first ones.
    peer   Who sent it; None where it has left, or is in a process of this machine.
    """

    parts: list[bytes]
    peer: Peer | None


class Link:
    """One socket in a context of its own. `endpoint` is where it is bound, as an address."""

    def __init__(self, address: str, bind: bool) -> None:
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
        self.doorkeeper = Doorkeeper(
            self._context, self.socket, self.address, spare_bytes, all_spare_bytes
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
        parts, size = [part.bytes], _sent_bytes(part)
        while part.more and len(parts) < MAX_KEPT:
            part = self.socket.recv(zmq.DONTWAIT, copy=False)
            parts.append(part.bytes)
            size += _sent_bytes(part)
        self._skipping = part.more
        try:
            peer = self.doorkeeper.peer(part.get(zmq.SRCFD))
        except zmq.ZMQError:  # made by ZeroMQ itself, for somebody who left
            peer = None
        if peer is not None:
            peer.known += size
            peer.messages += 1
        return Message(parts, peer)

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
        thrown = self.doorkeeper.thrown if self.doorkeeper else 0
        return [f"{thrown} peers were thrown out; the log says why"] if thrown else []

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


def _sent_bytes(part: Any) -> int:
    """What a part was on its way."""
    return len(part) + (2 if len(part) < 256 else 9)


class Broadcast:
    """The sink's end in mode=pub.

    dropped      Frames that found a subscriber full. With a single subscriber each such frame is
                 lost and the next one flagged. With several, the others still get it, and who
                 missed it finds a jump of seq; of a row of misses only the first may be counted.
    unheard      Frames that nobody was subscribed to.
    """

    kind = zmq.XPUB

    def __init__(self, link: Link, writer: PacketWriter, hwm: int) -> None:
        self._link, self._writer = link, writer
        self.dropped = self.unheard = 0
        self.settings = {
            **FROM_SUBSCRIBERS,
            zmq.SNDHWM: hwm,
            zmq.XPUB_NODROP: 1,
            zmq.XPUB_VERBOSER: 1,
        }

    @property
    def subscribers(self) -> int:
        """Peers with a subscription that our packets match, as far as they were read."""
        return sum(peer.welcome for peer in self._link.peers)

    @property
    def remarks(self) -> list[str]:
        told = self._link.remarks
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
        for parts, peer in self._link.messages():
            if peer is None or len(parts) != 1:
                continue
            if peer.messages > MAX_SUBSCRIPTIONS:
                self._link.throw_out(peer, f"it sent more than {MAX_SUBSCRIPTIONS} messages")
                continue
            change, topic = parts[0][:1], parts[0][1:]
            if change == b"\x01":
                joined = joined or (_matches(topic) and topic not in peer.topics)
                peer.topics.add(topic)
                if sum(map(len, peer.topics)) > MAX_TOPICS_BYTES:
                    self._link.throw_out(
                        peer, f"it subscribed to more than {MAX_TOPICS_BYTES} bytes of topics"
                    )
            elif change == b"\x00":
                peer.topics.discard(topic)
            peer.welcome = any(map(_matches, peer.topics))
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

    owes = False

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


@dataclass(eq=False)
class _Subscriber:
    """One that has granted, and what it was sent and took.

    sent, limit  Packets so far, and up to where it granted.
    received     What it says that it took; it began with `began`, and takes where that has grown.
    flying       Sizes of the packets that it was sent and has not taken.
    waiting      Packets for one that has taken nothing yet, so that the stream needs not wait.
    stalled_s    Since when it has no room, while there was something for it; 0 where it has.
    blocks_s     Since when the stream waits for it; 0 where it does not.
    """

    peer: Peer | None
    joined_s: float
    began: int
    sent: int
    received: int
    limit: int = 0
    heard_s: float = 0.0
    stalled_s: float = 0.0
    blocks_s: float = 0.0
    flying: deque[int] = field(default_factory=deque)
    flying_bytes: int = 0
    waiting: deque[bytes] = field(default_factory=deque)
    waiting_bytes: int = 0

    @property
    def taking(self) -> bool:
        return self.received > self.began

    @property
    def left(self) -> bool:
        """Whether its connection is no more."""
        return self.peer is not None and self.peer.socket is None

    def has_room(self, most_bytes: int) -> bool:
        return self.sent < self.limit and (not self.flying or self.flying_bytes < most_bytes)

    def took(self, received: int) -> None:
        for _ in range(min(received - self.received, len(self.flying))):
            self.flying_bytes -= self.flying.popleft()
        if received > self.received:
            self.stalled_s = self.blocks_s = 0.0
        self.received = received

    def was_sent(self, packet: bytes) -> None:
        self.sent += 1
        self.flying.append(len(packet))
        self.flying_bytes += len(packet)

    def keep(self, packet: bytes) -> None:
        self.waiting.append(packet)
        self.waiting_bytes += len(packet)


class Credited:
    """The sink's end in mode=credit.

    Who grants has a place, and the stream waits for all who have one: for those that stop taking
    for `timeout_s`, and for less where many came and stopped (see Patience).
    """

    kind = zmq.ROUTER

    dropped = unheard = 0
    # What is sent is bounded by the subscriber's credit, so the high-water mark is never met.
    settings = {**FROM_SUBSCRIBERS, zmq.SNDHWM: 2 * MAX_WINDOW, zmq.ROUTER_MANDATORY: 1}

    def __init__(self, link: Link, writer: PacketWriter, timeout_s: float) -> None:
        self._link, self._writer, self._timeout_s = link, writer, timeout_s
        self._known: dict[bytes, _Subscriber] = {}
        self._malformed, self._forgotten = Complaints(), Complaints()
        self._patience = Patience(timeout_s)
        self._frames = 0
        self._ended = False

    @property
    def subscribers(self) -> int:
        return len(self._known)

    @property
    def remarks(self) -> list[str]:
        told = self._link.remarks
        if self._forgotten.count:
            count = self._forgotten.count
            told.append(f"{count} subscribers were given up; the last one {self._why}")
        return told

    def read(self) -> None:
        for parts, peer in self._link.messages():
            if not parts:
                continue
            if peer is not None and self._floods(parts[0], peer):
                self._link.throw_out(peer, f"it sent {peer.messages} messages, and takes less")
                continue
            try:
                got = decode(parts[-1])
                if len(parts) != 2 or not isinstance(got, Credit | Bye):
                    raise WireError(f"got {type(got).__name__} in {len(parts)} parts")
                if isinstance(got, Credit):
                    self._credit(parts[0], got, peer)
                else:
                    self._known.pop(parts[0], None)
            except WireError as error:
                self._malformed.warn(
                    f"a subscriber of {self._link.address} talks nonsense: {error}"
                )

    def _floods(self, name: bytes, peer: Peer) -> bool:
        """Whether it says more than two words for each frame, and some for each second."""
        known = self._known.get(name)
        frames = known.sent - known.began if known else 0
        seconds = time.monotonic() - peer.since_s
        return peer.messages > SPARE_MESSAGES + MESSAGES_PER_S * seconds + 2 * frames

    def _credit(self, name: bytes, got: Credit, peer: Peer | None) -> None:
        ours = got.stream == self._writer.stream
        known = self._known.get(name)
        most = known.sent if known else self._frames if ours else 0
        if got.stream in (0, self._writer.stream) and got.received > most:
            raise WireError(f"{got.received} received, and {most} were sent")
        now_s = time.monotonic()
        if known is None:
            # Who grants nothing takes nobody's place, and nobody waits for it.
            if not got.window or not self._has_place():
                return
            # One that was given up, or whose connection broke, goes on with the frames to come.
            received = got.received if ours else 0
            known = _Subscriber(peer, now_s, received, received, received)
            self._known[name] = known
            if peer is not None:
                peer.welcome = True
            self._send(name, self._writer.info)
        known.heard_s = now_s
        if ours or not got.stream:
            known.took(max(known.received, got.received))
            known.limit = known.received + min(got.window, MAX_WINDOW)
            self._catch_up(name, known)

    def _has_place(self) -> bool:
        """Makes one, where somebody has one who takes nothing."""
        if len(self._known) < MAX_SUBSCRIBERS:
            return True
        strangers = {name: known for name, known in self._known.items() if not known.taking}
        name = min(strangers, key=lambda each: strangers[each].joined_s, default=None)
        if name is None or time.monotonic() - strangers[name].joined_s < STRANGERS_PLACE_S:
            self._malformed.warn(f"{self._link.address} has {MAX_SUBSCRIBERS} subscribers: full")
            return False
        self._forget(name, "has taken nothing, and others want its place")
        return True

    def beat(self) -> None:
        silent_since = time.monotonic() - self._timeout_s
        for name, known in list(self._known.items()):
            if known.heard_s < silent_since:
                self._forget(name, f"was silent for {self._timeout_s:g} s")
            elif known.stalled_s and known.stalled_s < silent_since:
                self._forget(name, f"took nothing for {self._timeout_s:g} s")
            else:
                self._send(name, self._writer.info)

    def ready(self) -> bool:
        """Whether all who are waited for have room; gives up those that take nothing."""
        self.read()
        now_s = time.monotonic()
        waits, taking = False, sum(known.taking for known in self._known.values())
        for name, known in list(self._known.items()):
            if known.left:
                self._forget(name, "left without a word")
                continue
            if self._has_room(known):
                known.stalled_s = known.blocks_s = 0.0
                continue
            known.stalled_s = known.stalled_s or now_s
            others = taking > known.taking
            if others and not known.taking and self._can_keep(known):
                continue
            known.blocks_s = known.blocks_s or now_s
            left_s = self._patience.left_s(known.joined_s, known.taking, others, now_s)
            if now_s - known.blocks_s > left_s:
                self._forget(name, f"took nothing for {now_s - known.stalled_s:.1f} s")
            else:
                waits = True
        return bool(self._known) and not waits

    def write(self, frame: Frame) -> None:
        packet = self._writer.packet(frame)
        self._frames += 1
        for name, known in list(self._known.items()):
            if known.waiting or not self._has_room(known):
                known.keep(packet)
            elif self._send(name, packet):
                known.was_sent(packet)
        self._writer.sent(frame)

    def _has_room(self, known: _Subscriber) -> bool:
        return known.has_room(MAX_FLYING_BYTES // max(1, len(self._known)))

    def _can_keep(self, known: _Subscriber) -> bool:
        return len(known.waiting) < MAX_KEPT_PACKETS and known.waiting_bytes < MAX_KEPT_BYTES

    def _catch_up(self, name: bytes, known: _Subscriber) -> None:
        while known.waiting and self._has_room(known):
            packet = known.waiting.popleft()
            known.waiting_bytes -= len(packet)
            if not self._send(name, packet):
                return
            known.was_sent(packet)

    @property
    def owes(self) -> bool:
        """Whether packets are kept for somebody."""
        return any(known.waiting for known in self._known.values())

    def finished(self, broken: str) -> bool:
        """Sends the end, once. False while there are subscribers that did not say goodbye."""
        self.read()
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
        known = self._known.pop(name, None)
        if known is not None and known.blocks_s:
            self._patience.waste(known.blocks_s, time.monotonic())
        if known is not None and known.peer is not None:
            known.peer.hang_up()
