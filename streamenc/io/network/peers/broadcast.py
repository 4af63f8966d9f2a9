"""Broadcast: a sink's end in mode=pub, where nobody waits for anybody."""

from __future__ import annotations

import zmq

from streamenc.graph.frames import Frame
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.wire import HEADER_BYTES, MAGIC
from streamenc.io.network.zeromq_link import FROM_SUBSCRIBERS, Link

# Subscribers have little to say: whoever says more floods.
MAX_SUBSCRIPTIONS, MAX_TOPICS_BYTES = 256, 1024
# Room for what is said at the beginning of a connection; ZeroMQ's own time and memory for a topic
# grow with its length.
MAX_MESSAGE_BYTES = 512


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
            zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
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
