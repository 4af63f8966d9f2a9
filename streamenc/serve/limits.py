"""Limits: what a server is configured with, as its processes hand it on to each other."""

from __future__ import annotations

from msgspec import Struct

from streamenc.errors import EngineFull, UsageError


class Limits(Struct, frozen=True, kw_only=True):
    """What clients may ask of a server, and for how long.

    Attributes:
        sessions: Streams at once, in all of the server's processes together; detached ones count.
        sessions_per_key: Of one key; 0 for as many as there are.
        resume_seconds: How long a stream is kept without a connection.
        checkpoint_seconds: How often a live stream is written to the store, for the case that its
            process dies; 0 for only when it ends or is told to.
        idle_seconds: A connection from which nothing comes for so long is closed; 0 for never.
        max_seconds: A stream that is older is ended; 0 for never.
        max_message_bytes: Of one WebSocket message.
        max_queued_bytes: Of a stream's input that waits, and of its output that nobody took.
        max_body_bytes: Of a file that is sent to be encoded.
        max_body_seconds: Of sound or images in it.
        max_pixels: Of an image, decoded.
        peers: Of WebRTC, in one process, which decodes their sound and images.
        files: Files that come, are encoded or decoded at once, in each process.
        handshake_seconds: Within which a new connection must have said what it wants.
        rooms: At once.
        room_listeners: In one room.
        room_wait_seconds: How long listeners wait where nobody produces.
        room_block_seconds: How long all wait for a listener that asks for that; 0 for not at all.
    """

    sessions: int = 64
    sessions_per_key: int = 0
    resume_seconds: float = 60.0
    checkpoint_seconds: float = 10.0
    idle_seconds: float = 60.0
    max_seconds: float = 0.0
    max_message_bytes: int = 2**20
    max_queued_bytes: int = 4 * 2**20
    max_body_bytes: int = 256 * 2**20
    max_body_seconds: float = 3600.0
    max_pixels: int = 2**24
    peers: int = 16
    files: int = 8
    handshake_seconds: float = 10.0
    rooms: int = 64
    room_listeners: int = 256
    room_wait_seconds: float = 60.0
    room_block_seconds: float = 1.0


class KeyFull(EngineFull):
    """A key has as many streams as one may have."""

    def __init__(self, most: int) -> None:
        UsageError.__init__(
            self, f"this key has its {most} streams: close one, or wait until one ends"
        )
        self.max_sessions = most
