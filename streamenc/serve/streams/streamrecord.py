"""StreamRecord: a live stream written down, for another process to go on with it."""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from streamenc.errors import SnapshotError
from streamenc.io.network.websocket.livemessages import Open
from streamenc.serve.streams.outbox import Sent
from streamenc.serve.streams.streamcoder import StageState

VERSION = 1
DIGEST_BYTES = 16

_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Ticks = Annotated[int, Meta(ge=-(2**53), le=2**53 - 1)]


KeptMessage: TypeAlias = tuple[_Count, bool, bytes]
"""A numbered message: its number, whether it is text, and its bytes."""


def kept(sent: Sent) -> KeptMessage:
    """A message as a record has it."""
    if isinstance(sent.packet, str):
        return sent.n, True, sent.packet.encode()
    return sent.n, False, sent.packet


class StreamRecord(Struct, frozen=True):
    """All that a stream is.

    Attributes:
        session: By which the stream is called, in messages and logs.
        owner: The name of the key that opened it.
        fingerprint: Of its models.
        born_unix_ns: When it was opened.
        seq, pts: Of the input that comes next.
        n: Of the numbered message that comes next.
        kept_from: Number of the message from which on the client may ask again.
        unacknowledged: Messages that the client may not have.
        info: The packet that describes those; b"" where nothing has come out.
        stages: What the engine had; none where nothing had come yet.
        input: What the bytes to come belong to; None where that cannot be written down.
        watch: The state of the detector of speech.
        layout: The state of the layout.
    """

    session: str
    owner: str
    fingerprint: str
    born_unix_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    asked: Open
    seq: _Count
    pts: _Ticks
    n: _Count
    packets: _Count
    items: _Count
    unacknowledged: list[KeptMessage]
    stages: list[StageState]
    codebooks: Annotated[int, Meta(ge=1)] | None
    kept_from: _Count = 0
    info: bytes = b""
    input: bytes | None = None
    exact: bool = True
    why: str = ""
    watch: bytes = b""
    watching: bool = False
    layout: bytes = b""

    def messages(self) -> list[Sent]:
        return [
            Sent(n, None, packet.decode() if text else packet)
            for n, text, packet in self.unacknowledged
        ]

    def input_for(self, fingerprint: str) -> bytes:
        """The state of the input, for a stream through the models of that fingerprint.

        Raises:
            SnapshotError: Where it is of other models, or its input could not be written down.
        """
        if self.fingerprint != fingerprint:
            raise SnapshotError(
                f"got a snapshot of {self.asked.model} with other weights or options; this "
                "server's model has another fingerprint"
            )
        if self.input is None:
            raise SnapshotError("this stream's file is longer than is kept: open another stream")
        return self.input

    def to_bytes(self) -> bytes:
        body = msgspec.msgpack.encode(self)
        return bytes([VERSION]) + hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body


def read_record(blob: bytes) -> StreamRecord:
    """Raises SnapshotError for what is none, or was damaged."""
    if not blob or blob[0] != VERSION:
        raise SnapshotError(
            f"got a snapshot of version {blob[0] if blob else 'none'}; this server reads {VERSION}"
        )
    digest, body = blob[1 : 1 + DIGEST_BYTES], blob[1 + DIGEST_BYTES :]
    if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != digest:
        raise SnapshotError(f"got a snapshot of {len(blob)} bytes that was damaged on its way")
    try:
        return msgspec.msgpack.decode(body, type=StreamRecord)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SnapshotError(f"got a malformed snapshot: {error}") from None
