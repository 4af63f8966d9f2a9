"""Packets that go on to somebody else, with one field changed."""

from __future__ import annotations

import msgspec

from streamenc.io.network.wire import DISCONTINUITY, HEADER_BYTES, RESENT

# Their places in the tables of docs/io/wire.md.
_STREAM, _FLAGS = 0, 5


def flagged(packet: bytes) -> bytes:
    """A data packet that `decode` takes, now with the flag of a discontinuity."""
    return _with_flag(packet, DISCONTINUITY)


def resent(packet: bytes) -> bytes:
    """A data packet that `decode` takes, now with the flag of one that may have come before."""
    return _with_flag(packet, RESENT)


def restreamed(packet: bytes, stream: int) -> bytes:
    """An info or data packet that `decode` takes, now of another stream."""
    fields = msgspec.msgpack.decode(memoryview(packet)[HEADER_BYTES:])
    fields[_STREAM] = stream
    return packet[:HEADER_BYTES] + msgspec.msgpack.encode(fields)


def _with_flag(packet: bytes, flag: int) -> bytes:
    fields = msgspec.msgpack.decode(memoryview(packet)[HEADER_BYTES:])
    fields[_FLAGS] |= flag
    return packet[:HEADER_BYTES] + msgspec.msgpack.encode(fields)
