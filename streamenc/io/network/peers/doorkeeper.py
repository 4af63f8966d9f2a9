"""Doorkeeper: who is connected to a ZeroMQ socket, and who is thrown out.

libzmq bounds the messages that wait, and the bytes of each part. It bounds neither the parts of a
message, which wait until the last one is there, nor the topics that somebody subscribes to, nor how
long a socket reads subscriptions of somebody who never stops, nor connections. So a thread compares
what the kernel received from each peer with what was read of it as messages, and hangs up on those
who send what nobody has use for.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import termios
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from streamenc.io.network.packets import Complaints

MAX_CONNECTIONS = 320
# So often peers are looked at: what one can send meanwhile is all that it can do. Whoever uses the
# socket may be the one who hears of the first.
LOOK_MS, LOOK_FOR_FIRST_MS = 10, 50
# Beyond what messages say: heartbeats, of which it may send some itself.
IDLE_BYTES_PER_S = 16
# Whoever was thrown out for what it sent comes back at once, if it is a program that means harm. So
# newcomers from its host are hung up on for a while, twice as long each time; who is in stays.
BANNED_S, LONGEST_BAN_S, MAX_BANS = 1.0, 60.0, 1024
EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_MONITOR_STOPPED
)
# Of Linux's tcp_info: tcpi_bytes_received, which other systems do not have.
RECEIVED = struct.Struct("=128xQ")


@dataclass(eq=False)
class Peer:
    """One connection.

    socket   The same connection as the socket's own descriptor, so that it can be hung up on; None
             once it was closed.
    known    Bytes of it that were read as messages, and how many `messages` these were.
    topics   What it subscribed to.
    thrown   It was hung up on.
    welcome  It has said what it is here for: it keeps its place where others want to come in.
    """

    socket: socket.socket | None
    host: str
    since_s: float
    known: int = 0
    messages: int = 0
    topics: set[bytes] = field(default_factory=set)
    welcome: bool = False
    thrown: bool = False

    def unknown_bytes(self, now_s: float) -> int:
        """What it sent that was not read as messages; 0 where the system does not tell."""
        if self.socket is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED.size)
            if len(told) < RECEIVED.size:
                return 0
            unread = struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)))[0]
        except OSError:  # a Unix socket, or closed
            return 0
        idle = int(IDLE_BYTES_PER_S * (now_s - self.since_s))
        return int(RECEIVED.unpack(told)[0] - unread - self.known - idle)

    def hang_up(self) -> None:
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


class Doorkeeper:
    """Watches a socket, from before it is bound or connected until `stop`.

    peer_bytes, all_bytes  What one peer, and all together, may send that is not read as messages.
    zap       A socket at which it is asked who may come in, and what answers; see Curve.
    shaken    Handshakes that succeeded.
    refusal   How the last handshake failed that did: an event of ZeroMQ; 0 where none did.
    thrown    Peers that were thrown out.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        watched: Any,
        address: str,
        peer_bytes: int,
        all_bytes: int,
        porter: Any = None,
    ) -> None:
        self._address, self._peer_bytes, self._all_bytes = address, peer_bytes, all_bytes
        self._porter = porter
        self._watched = watched
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Each takes two descriptors, and the rest of the process needs some.
        self._most = max(8, min(MAX_CONNECTIONS, files // 4))
        self._peers: dict[int, Peer] = {}
        # Host -> until when it is banned, and for how long the last time.
        self._bans: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._complaints = Complaints()
        self._stopped = False
        self.shaken = self.refusal = 0
        where = f"inproc://doorkeeper-{id(self)}"
        watched.monitor(where, EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._events.linger = 0
        self._events.connect(where)
        self._thread = threading.Thread(target=self._run, name="doorkeeper", daemon=True)
        self._thread.start()

    @property
    def thrown(self) -> int:
        return self._complaints.count

    @property
    def peers(self) -> list[Peer]:
        """All that are connected now."""
        with self._lock:
            self._hear()
            return list(self._peers.values())

    def peer(self, descriptor: int) -> Peer | None:
        """Whom a message came from; None where it has left."""
        peer = self._peers.get(descriptor)
        if peer is None:
            with self._lock:
                self._hear()
                peer = self._peers.get(descriptor)
        return peer

    def throw_out(self, peer: Peer, why: str) -> None:
        """Hangs up on one that does harm; newcomers from its host have to wait."""
        if peer.thrown:  # what it had sent by then is still being read
            return
        peer.thrown = True
        self._complaints.warn(f"threw out a peer of {self._address}: {why}")
        peer.hang_up()
        now_s = time.monotonic()
        until_s, last_s = self._bans.get(peer.host, (0.0, BANNED_S / 2))
        if now_s >= until_s:
            last_s = BANNED_S if now_s > until_s + LONGEST_BAN_S else min(2 * last_s, LONGEST_BAN_S)
            self._bans[peer.host] = now_s + last_s, last_s
            if len(self._bans) > MAX_BANS:
                del self._bans[next(iter(self._bans))]

    def stop(self) -> None:
        """By whoever uses the socket, which is still open; may be called twice."""
        if not self._stopped:
            self._watched.disable_monitor()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._events, zmq.POLLIN)
        if self._porter is not None:
            poller.register(self._porter.socket, zmq.POLLIN)
        while not self._stopped:
            poller.poll(LOOK_MS if self._peers else LOOK_FOR_FIRST_MS)
            if self._porter is not None:
                self._porter.answer()
            with self._lock:
                self._hear()
                self._look()
        with self._lock:
            for descriptor in list(self._peers):
                self._forget(descriptor)
            self._events.close()
            if self._porter is not None:
                self._porter.socket.close()

    def _hear(self) -> None:
        """Reads who came and left."""
        while not self._stopped:
            try:
                told = parse_monitor_message(self._events.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            match told["event"]:
                case zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED:
                    self._admit(int(told["value"]))
                case zmq.EVENT_DISCONNECTED:
                    self._forget(int(told["value"]))
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self.shaken += 1
                case zmq.EVENT_MONITOR_STOPPED:
                    self._stopped = True
                case failed:
                    self.refusal = int(failed)

    def _admit(self, descriptor: int) -> None:
        self._forget(descriptor)
        try:
            found = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # it has left already, or there are no descriptors any more
            return
        host = ""
        with suppress(OSError):
            host = str(found.getpeername()[0]) if found.family != socket.AF_UNIX else ""
        peer = self._peers[descriptor] = Peer(found, host, time.monotonic())
        if host and peer.since_s < self._bans.get(host, (0.0, 0.0))[0]:
            peer.hang_up()
            self._forget(descriptor)
        elif len(self._peers) > self._most:
            self._make_room(peer)

    def _make_room(self, newest: Peer) -> None:
        """Throws out who came first of those that said nothing yet, from where most of them are."""
        idle = [peer for peer in self._peers.values() if not peer.welcome]
        hosts = Counter(peer.host for peer in idle)
        victim = max(idle, key=lambda peer: (hosts[peer.host], -peer.since_s), default=newest)
        self._complaints.warn(
            f"hung up on a peer of {self._address}: {self._most} are connected, and it had not "
            "said what it wants"
        )
        victim.hang_up()
        for descriptor, peer in list(self._peers.items()):
            if peer is victim:
                self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        peer = self._peers.pop(descriptor, None)
        if peer is not None and peer.socket is not None:
            peer.socket.close()
            peer.socket = None

    def _look(self) -> None:
        now_s = time.monotonic()
        sent = {peer: peer.unknown_bytes(now_s) for peer in self._peers.values()}
        for peer, unknown in sent.items():
            if unknown > self._peer_bytes:
                self._refuse(peer, unknown)
        sent = {peer: unknown for peer, unknown in sent.items() if unknown <= self._peer_bytes}
        if sum(sent.values()) > self._all_bytes:
            most = max(sent, key=lambda peer: sent[peer])
            self._refuse(most, sent[most])

    def _refuse(self, peer: Peer, unknown: int) -> None:
        self.throw_out(peer, f"it sent {unknown} bytes that are no whole messages")
        for descriptor, each in list(self._peers.items()):
            if each is peer:
                self._forget(descriptor)
