"""Credited: a sink's end in mode=credit, which waits for its subscribers."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import zmq

from streamenc.errors import WireError
from streamenc.graph.frames import Frame
from streamenc.io.network.packets import Complaints, PacketWriter
from streamenc.io.network.peers.doorkeeper import Peer
from streamenc.io.network.peers.patience import Patience
from streamenc.io.network.wire import Bye, Credit, decode
from streamenc.io.network.zeromq_link import FROM_SUBSCRIBERS, Link

MAX_SUBSCRIBERS = 256
MAX_WINDOW = 1024
# Subscribers have little to say: whoever says more than this, beside two words a frame, floods.
SPARE_MESSAGES, MESSAGES_PER_S = 256, 20
# What may be on its way to all subscribers together, beside a packet for each.
MAX_FLYING_BYTES = 256 << 20
# What is kept for a subscriber that has taken nothing yet, so that no other waits for it; packets
# are shared by all for whom they are kept.
MAX_KEPT_PACKETS, MAX_KEPT_BYTES = 4096, 16 << 20
# Where all places are taken, one that has taken nothing for so long loses its own to a newcomer.
STRANGERS_PLACE_S = 1.0


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

    unheard = 0
    # What is sent is bounded by the subscriber's credit, so the high-water mark is never met.
    settings = {**FROM_SUBSCRIBERS, zmq.SNDHWM: 2 * MAX_WINDOW, zmq.ROUTER_MANDATORY: 1}

    def __init__(self, link: Link, writer: PacketWriter, timeout_s: float) -> None:
        self._link, self._writer, self._timeout_s = link, writer, timeout_s
        self._known: dict[bytes, _Subscriber] = {}
        self._malformed, self._forgotten = Complaints(), Complaints()
        self._patience = Patience(timeout_s)
        self._frames = self.dropped = 0
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
        if self.dropped:
            told.append(
                f"{self.dropped} frames were dropped, as nobody was subscribed when the stream was "
                "stopped"
            )
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

    def drop(self, frame: Frame) -> None:
        """Of a stream that was stopped, and that nobody reads."""
        self.dropped += 1
        self._writer.dropped(frame)

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
            if self._ended and not self._known[name].waiting:  # it had all, and has left
                del self._known[name]
            else:
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
