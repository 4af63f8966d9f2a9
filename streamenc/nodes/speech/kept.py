"""What a stream remembers, as bytes: msgpack of a fixed shape, read without trusting it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from streamenc.errors import SnapshotError

T = TypeVar("T", bound=msgspec.Struct)

MAX_STATE_BYTES = 2**20

_encode = msgspec.msgpack.Encoder().encode


class Kept(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The state of one thing; a subclass has its fields, and their order is the format."""

    def to_bytes(self) -> bytes:
        return _encode(self)


def from_bytes(state: bytes, shape: type[T], what: str) -> T:
    """Raises SnapshotError where it is none of `shape`; `what` is of whom, for the message."""
    if len(state) > MAX_STATE_BYTES:
        raise SnapshotError(f"got {len(state)} bytes as the state of {what}; that is too much")
    try:
        return msgspec.msgpack.decode(state, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"got a malformed state of {what}: {error}") from None
